"""Modules made from estimators of scikit-learn give what the estimators give, and lift to the same."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import olac
from olac.errors import UnsupportedModelError
from olac.frontend import check, lift, trace

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.decomposition import PCA, TruncatedSVD  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402
from sklearn.feature_selection import SelectKBest, VarianceThreshold  # noqa: E402
from sklearn.linear_model import (  # noqa: E402
    ElasticNet,
    Lasso,
    LassoCV,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    Ridge,
    RidgeClassifier,
    RidgeCV,
    SGDClassifier,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.pipeline import Pipeline, make_pipeline  # noqa: E402
from sklearn.preprocessing import (  # noqa: E402
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC, LinearSVR  # noqa: E402

Rows = np.ndarray[Any, np.dtype[np.float64]]


def rows(count: int = 60, features: int = 5, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, features)) * random.uniform(0.5, 3, features) + random.uniform(-3, 3, features)


def classes(x: Rows, count: int) -> Any:
    scores = x @ np.random.default_rng(1).normal(size=x.shape[1])
    return np.array(["a", "b", "c"])[np.argsort(np.argsort(scores)) * count // len(x)]


def fitted(estimator: Any, x: Rows, y: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged, and names that will go
        return estimator.fit(x, y)


def same(estimator: Any, x: Rows, method: str, output: str = "auto") -> nn.Module:
    """Compare module and lifted graph with a method of the estimator, on other rows; returns the module."""
    module = olac.from_sklearn(estimator, output)
    other = rows(9, x.shape[1], seed=7)
    expected = np.asarray(getattr(estimator, method)(other))
    size = max(1.0, np.abs(expected).max())
    given_rows = torch.from_numpy(other).float()
    with torch.no_grad():
        got = module(given_rows).numpy()
    assert got.shape == expected.shape and np.abs(got - expected).max() <= 1e-4 * size
    lifted = lift(trace(module, given_rows)).evaluate(other)
    assert lifted.shape == expected.shape and np.abs(lifted - expected).max() <= 1e-4 * size
    return module


TRANSFORMERS = [
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    MinMaxScaler((-1, 2)),
    MinMaxScaler(clip=True),
    MaxAbsScaler(),
    RobustScaler(),
    RobustScaler(with_centering=False, with_scaling=False),
    PCA(3),
    PCA(whiten=True),
    TruncatedSVD(2),
    PolynomialFeatures(2),
    PolynomialFeatures(3, interaction_only=True, include_bias=False),
    PolynomialFeatures(1),
    VarianceThreshold(1.0),
]


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_transformers(transformer: Any) -> None:
    x = rows()
    same(fitted(transformer, x), x, "transform")


REGRESSORS = [
    LinearRegression(),
    LinearRegression(fit_intercept=False),
    Ridge(0.3),
    RidgeCV(),
    Lasso(0.01),
    LassoCV(),
    ElasticNet(0.01),
    LinearSVR(),
    MLPRegressor(hidden_layer_sizes=(8, 4), activation="tanh", max_iter=20),
    MLPRegressor(hidden_layer_sizes=(8,), activation="identity", max_iter=20),
]


@pytest.mark.parametrize("regressor", REGRESSORS, ids=str)
def test_regressors(regressor: Any) -> None:
    x = rows()
    same(fitted(regressor, x, x @ np.arange(5.0) + 1), x, "predict")


@pytest.mark.parametrize("regressor", [LinearRegression(), Lasso(0.01), MLPRegressor(max_iter=20)], ids=str)
def test_several_targets(regressor: Any) -> None:
    x = rows()
    same(fitted(regressor, x, x[:, :2] * 2 - x[:, 2:4]), x, "predict")


LINEAR_CLASSIFIERS = [
    LogisticRegression(),
    LogisticRegression(solver="liblinear"),
    LogisticRegressionCV(Cs=3),
    LinearSVC(),
    RidgeClassifier(),
    Perceptron(),
    SGDClassifier(),
]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("classifier", LINEAR_CLASSIFIERS, ids=str)
def test_decision_functions(classifier: Any, count: int) -> None:
    x = rows(90)
    if classifier.__class__ is LogisticRegression and classifier.solver == "liblinear" and count > 2:
        pytest.skip("scikit-learn fits two classes by liblinear")
    model = fitted(sklearn.base.clone(classifier), x, classes(x, count))
    module = same(model, x, "decision_function")
    scores = module(torch.from_numpy(x).float()).detach().numpy()
    chosen = (scores > 0).astype(int) if count == 2 else scores.argmax(1)
    assert (model.classes_[chosen] == model.predict(x)).mean() > 0.98


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "classifier",
    [LogisticRegression(), MLPClassifier((6,), max_iter=30), MLPClassifier((6,), "logistic", max_iter=30)],
    ids=str,
)
def test_probabilities(classifier: Any, count: int) -> None:
    x = rows(90)
    same(fitted(sklearn.base.clone(classifier), x, classes(x, count)), x, "predict_proba", "predict_proba")


def test_several_labels() -> None:
    x = rows(90)
    same(fitted(MLPClassifier((6,), max_iter=30), x, (x[:, :3] > 0).astype(int)), x, "predict_proba")


def test_pipelines() -> None:
    x = rows(90)
    y = classes(x, 3)
    steps: list[Any] = [StandardScaler(), "passthrough", SelectKBest(k=4), PCA(3), PolynomialFeatures(2)]
    model = fitted(make_pipeline(*steps, Pipeline([("scale", MinMaxScaler()), ("end", LinearSVC())])), x, y)
    module = same(model, x, "decision_function")
    assert [name for name, _ in module.named_children()] == ["products0", "linear1"], "linear steps are one"
    net = fitted(make_pipeline(StandardScaler(), MLPClassifier((6,), max_iter=30)), x, y)
    assert len(list(same(net, x, "predict_proba").children())) == 4


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(2, 4), st.integers(0, 99), st.sampled_from(["relu", "tanh", "logistic"]))
def test_any_sizes(features: int, count: int, seed: int, activation: str) -> None:
    x = rows(60, features, seed)
    y = np.arange(60) % count
    scaled = [StandardScaler(), PolynomialFeatures(2), RobustScaler()]
    for end in (LogisticRegression(), LinearRegression(), MLPClassifier((3,), activation, max_iter=5)):
        model = fitted(make_pipeline(*(sklearn.base.clone(one) for one in scaled), end), x, y)
        same(model, x, next(m for m in ("decision_function", "predict_proba", "predict") if hasattr(model, m)))


def test_far_from_zero() -> None:
    x = rows() + 1e5
    model = fitted(make_pipeline(StandardScaler(), LinearRegression()), x, x @ np.arange(5.0) / 1e5)
    module = olac.from_sklearn(model)
    with torch.no_grad():  # rounded inputs alone cost this much
        assert np.abs(module(torch.from_numpy(x).float()).numpy() - model.predict(x)).max() < 1e-2


def test_compiled() -> None:
    x = rows(400)
    model = fitted(make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=200)), x, classes(x, 3))
    module = olac.from_sklearn(model)
    assert not check(module, torch.from_numpy(x).float())
    program = olac.compile(module, torch.from_numpy(x).float(), log_ring=12, insecure=True, degree=5)
    got = program.simulate(x)
    assert np.allclose(got.sum(1), 1) and (got.argmax(1) == model.predict_proba(x).argmax(1)).mean() > 0.9


def test_refusals() -> None:
    x = rows()
    y = classes(x, 3)
    pipeline = fitted(make_pipeline(Normalizer(), PCA(3), Normalizer(), RandomForestClassifier(2)), x, y)
    with pytest.raises(UnsupportedModelError) as error:
        olac.from_sklearn(pipeline)
    assert [node.path for node in error.value.nodes] == ["normalizer-1", "normalizer-2", "randomforestclassifier"]
    for estimator, output, problem in (
        (SVC(), "auto", "SVC is not supported"),
        (LinearSVC(), "predict_proba", "predict_proba of LinearSVC is not supported. Ask for decision_function"),
        (LogisticRegression(), "predict", "Ask for decision_function or predict_proba"),
    ):
        with pytest.raises(UnsupportedModelError, match=problem):
            olac.from_sklearn(fitted(estimator, x, y), output)
    with pytest.raises(UnsupportedModelError, match="str is not supported"):
        olac.from_sklearn("text")
    with pytest.raises(ValueError, match="fit it first"):
        olac.from_sklearn(StandardScaler())
    with pytest.raises(ValueError, match="output 'proba' is not one of"):
        olac.from_sklearn(fitted(PCA(2), x), "proba")


def test_one_versus_the_rest_is_refused() -> None:
    x = rows(90)
    model = fitted(LogisticRegression(), x, classes(x, 3))
    model.solver = "liblinear"  # as older versions of scikit-learn fit it
    with pytest.raises(UnsupportedModelError, match="divides by their sum"):
        olac.from_sklearn(model, "predict_proba")
