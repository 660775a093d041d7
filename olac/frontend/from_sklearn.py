"""Estimators of scikit-learn as torch modules. It is not imported: an estimator is read by its fitted attributes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from olac.errors import UnsupportedModelError, UnsupportedNode
from olac.ir.ops import Array
from olac.system.internal import callers

OUTPUTS = ("auto", "decision_function", "predict_proba", "predict", "transform")


@dataclass(frozen=True)
class _Affine:
    """x -> x @ matrix + shift, for rows x; matrix (inputs, outputs), in double precision."""

    matrix: Array
    shift: Array

    def then(self, other: _Affine) -> _Affine:
        return _Affine(self.matrix @ other.matrix, self.shift @ other.matrix + other.shift)

    def module(self) -> nn.Linear:
        inputs, outputs = self.matrix.shape
        made = nn.Linear(inputs, outputs)
        with torch.no_grad():
            made.weight.copy_(torch.from_numpy(self.matrix.T.copy()))
            made.bias.copy_(torch.from_numpy(self.shift.copy()))
        return made


@dataclass(frozen=True)
class _Product:
    """The product of several affine functions of the same input, element by element."""

    factors: tuple[_Affine, ...]

    def after(self, first: _Affine) -> _Product:
        return _Product(tuple(first.then(one) for one in self.factors))


_Step = _Affine | _Product | nn.Module


class Products(nn.Module):
    """The product of several linear layers of the same input, element by element: features of a polynomial."""

    def __init__(self, factors: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.factors = nn.ModuleList(factors)

    def forward(self, x: Any) -> Any:
        """(n, inputs) to (n, features)."""
        result = self.factors[0](x)
        for factor in list(self.factors)[1:]:
            result = result * factor(x)
        return result


class OneNumber(nn.Module):
    """(n, 1) to (n,), as scikit-learn gives one number for each row."""

    def forward(self, x: Any) -> Any:
        """(n, 1) to (n,)."""
        return x.squeeze(1)


def from_sklearn(estimator: Any, output: str = "auto") -> nn.Module:
    """A fitted estimator of scikit-learn, or a Pipeline, as a torch module in single precision for `olac.compile`.

    The module takes rows (n, features) and gives what the estimator's own method gives for them:

    - "predict" for LinearRegression, Ridge, Lasso, ElasticNet, their versions with cross-validation, LinearSVR and
      MLPRegressor: (n,) or (n, targets);
    - "decision_function" for LogisticRegression, LinearSVC, RidgeClassifier, Perceptron and SGDClassifier: (n,) for two
      classes, (n, classes) for more; the class of a row is `estimator.classes_` at the largest, or at score > 0;
    - "predict_proba" for LogisticRegression and MLPClassifier: (n, classes). Its softmax is computed by the client;
    - "transform" for StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, TruncatedSVD, PolynomialFeatures
      and selections of features.

    Linear steps that follow each other become one layer, multiplied in double precision.

    Args:
        estimator: it is not changed.
        output: the method whose result is computed. "auto" takes the first that the estimator has of decision_function,
            predict_proba (for classifiers), predict (for regressors) and transform.

    Raises:
        UnsupportedModelError: an estimator or a setting that is none of these; lists all steps of a pipeline.
        ValueError: `output` is unknown, or the estimator was not fitted.
    """
    with callers():
        if output not in OUTPUTS:
            raise ValueError(f"output {output!r} is not one of {', '.join(OUTPUTS)}")
        reader = _Reader()
        reader.read(estimator, "", output)
        if reader.problems:
            raise UnsupportedModelError(reader.problems)
        return _assembled(reader.steps)


class _Unfit(Exception):
    """A step can't be taken; the message says why, `advice` what to do."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.advice = advice


class _Reader:
    """Collects the steps of an estimator, and what can't be taken."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.problems: list[UnsupportedNode] = []

    def read(self, estimator: Any, path: str, output: str) -> None:
        """Append the steps of an estimator; `output` names the method that is wanted of it."""
        if any(cls.__name__ == "Pipeline" for cls in _own_classes(estimator)):
            *before, (last, end) = estimator.steps
            for name, step in before:
                self.read(step, f"{path}.{name}".strip("."), "transform")
            self.read(end, f"{path}.{last}".strip("."), output)
            return
        if estimator is None or (isinstance(estimator, str) and estimator == "passthrough"):
            return
        try:
            self.steps += _steps_of(estimator, output)
        except _Unfit as error:
            self.problems.append(UnsupportedNode(path, "", str(error), error.advice))


def _own_classes(estimator: Any) -> list[type]:
    """The classes of an estimator that scikit-learn defines, the most special one first."""
    return [cls for cls in type(estimator).__mro__ if cls.__module__.partition(".")[0] == "sklearn"]


def _steps_of(estimator: Any, output: str) -> list[_Step]:
    kind = next((cls.__name__ for cls in _own_classes(estimator) if cls.__name__ in _KINDS), "")
    if not kind:
        raise _Unfit(
            f"{type(estimator).__name__} is not supported",
            "Take linear or logistic models, LinearSVC, an MLP, scalers, PCA and PolynomialFeatures",
        )
    made, outputs = _KINDS[kind]
    wanted = outputs[0] if output == "auto" else output
    if wanted not in outputs:
        raise _Unfit(f"{wanted} of {kind} is not supported", f"Ask for {' or '.join(outputs)}")
    try:
        return made(estimator, wanted)
    except AttributeError as error:
        raise ValueError(f"{kind} has no {error.name}: fit it first") from error


def _assembled(steps: Sequence[_Step]) -> nn.Sequential:
    """Steps as modules; affine steps that follow each other, or come before products, become one."""
    folded: list[_Step] = []
    for step in steps:
        last = folded[-1] if folded else None
        if isinstance(last, _Affine) and isinstance(step, _Affine):
            folded[-1] = last.then(step)
        elif isinstance(last, _Affine) and isinstance(step, _Product):
            folded[-1] = step.after(last)
        else:
            folded.append(step)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for place, one in enumerate(folded):
        if isinstance(one, _Affine):
            modules[f"linear{place}"] = one.module()
        elif isinstance(one, _Product):
            modules[f"products{place}"] = Products([factor.module() for factor in one.factors])
        else:
            modules[f"{type(one).__name__.lower()}{place}"] = one
    return nn.Sequential(modules).eval()


# Transformers --------------------------------------------------------------------------------------------------------


def _diagonal(features: int, scale: Any, shift: Any) -> _Affine:
    return _Affine(np.eye(features) * np.asarray(scale, dtype=np.float64), np.zeros(features) + shift)


def _scaler(estimator: Any, output: str) -> list[_Step]:
    """StandardScaler, RobustScaler, MaxAbsScaler: (x - centre) / scale."""
    features = estimator.n_features_in_
    centre = getattr(estimator, "center_", getattr(estimator, "mean_", None))
    scale = estimator.scale_
    if centre is None or getattr(estimator, "with_mean", True) is False:
        centre = 0.0
    scale = np.ones(features) if scale is None else scale
    return [_diagonal(features, 1.0 / scale, -np.asarray(centre) / scale)]


def _min_max(estimator: Any, output: str) -> list[_Step]:
    made: list[_Step] = [_diagonal(estimator.n_features_in_, estimator.scale_, estimator.min_)]
    if estimator.clip:
        low, high = estimator.feature_range
        made.append(nn.Hardtanh(float(low), float(high)))
    return made


def _components(estimator: Any, output: str) -> list[_Step]:
    """PCA and TruncatedSVD: projections, with the variance made one if they whiten."""
    matrix = np.asarray(estimator.components_, dtype=np.float64).T
    if getattr(estimator, "whiten", False):
        smallest = np.finfo(np.float64).eps
        matrix = matrix / np.sqrt(np.maximum(estimator.explained_variance_, smallest))
    mean = getattr(estimator, "mean_", None)
    centre = np.zeros(len(matrix)) if mean is None else np.asarray(mean, dtype=np.float64)
    return [_Affine(matrix, -centre @ matrix)]


def _polynomial(estimator: Any, output: str) -> list[_Step]:
    powers = np.asarray(estimator.powers_)  # (features, inputs)
    degree = max(1, int(powers.sum(1).max()))
    factors = []
    for place in range(degree):
        matrix, shift = np.zeros(powers.T.shape), np.ones(len(powers))
        for feature, exponents in enumerate(powers):
            variables = np.repeat(np.arange(len(exponents)), exponents)
            if place < len(variables):
                matrix[variables[place], feature], shift[feature] = 1.0, 0.0
        factors.append(_Affine(matrix, shift))
    return [_Product(tuple(factors))] if degree > 1 else [factors[0]]


def _selection(estimator: Any, output: str) -> list[_Step]:
    kept = np.flatnonzero(estimator.get_support())
    return [_Affine(np.eye(estimator.n_features_in_)[:, kept], np.zeros(len(kept)))]


# Predictors ----------------------------------------------------------------------------------------------------------


def _scores(estimator: Any) -> _Affine:
    matrix = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64)).T
    shift = np.zeros(matrix.shape[1]) + np.asarray(estimator.intercept_, dtype=np.float64).reshape(-1)
    return _Affine(matrix, shift)


def _regressor(estimator: Any, output: str) -> list[_Step]:
    one = np.ndim(estimator.coef_) == 1
    return [_scores(estimator), *([OneNumber()] if one else [])]


def _classifier(estimator: Any, output: str) -> list[_Step]:
    scores = _scores(estimator)
    if output == "decision_function":
        return [scores, *([OneNumber()] if scores.matrix.shape[1] == 1 else [])]
    if len(estimator.classes_) > 2 and (
        getattr(estimator, "solver", "") == "liblinear" or getattr(estimator, "multi_class", "") == "ovr"
    ):
        raise _Unfit(
            "predict_proba of one classifier for each class divides by their sum",
            "Ask for decision_function, and compute probabilities from the decrypted scores",
        )
    return [*_two_classes(scores), nn.Softmax(1)]


def _two_classes(scores: _Affine) -> list[_Step]:
    """Scores for each class. For two classes there is one score, and its sigmoid is the softmax of 0 and the score."""
    return [scores, _Affine(np.array([[0.0, 1.0]]), np.zeros(2))] if scores.matrix.shape[1] == 1 else [scores]


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}


def _layers(estimator: Any) -> list[_Step]:
    steps: list[_Step] = []
    for matrix, shift in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        if steps and estimator.activation != "identity":
            steps.append(_ACTIVATIONS[estimator.activation]())
        steps.append(_Affine(np.asarray(matrix, dtype=np.float64), np.asarray(shift, dtype=np.float64)))
    return steps


def _mlp_regressor(estimator: Any, output: str) -> list[_Step]:
    return [*_layers(estimator), *([OneNumber()] if estimator.n_outputs_ == 1 else [])]


def _mlp_classifier(estimator: Any, output: str) -> list[_Step]:
    *before, last = _layers(estimator)
    assert isinstance(last, _Affine)
    if estimator.out_activation_ == "softmax":
        return [*before, last, nn.Softmax(1)]
    if estimator.n_outputs_ == 1:
        return [*before, *_two_classes(last), nn.Softmax(1)]
    return [*before, last, nn.Sigmoid()]


_Made = Callable[[Any, str], list[_Step]]
_TRANSFORM, _PREDICT, _DECISION, _PROBABILITIES = (
    ("transform",),
    ("predict",),
    ("decision_function",),
    ("predict_proba",),
)

_KINDS: dict[str, tuple[_Made, tuple[str, ...]]] = {
    **dict.fromkeys(("StandardScaler", "RobustScaler", "MaxAbsScaler"), (_scaler, _TRANSFORM)),
    "MinMaxScaler": (_min_max, _TRANSFORM),
    **dict.fromkeys(("PCA", "TruncatedSVD"), (_components, _TRANSFORM)),
    "PolynomialFeatures": (_polynomial, _TRANSFORM),
    "SelectorMixin": (_selection, _TRANSFORM),
    **dict.fromkeys(
        ("LinearRegression", "Ridge", "RidgeCV", "ElasticNet", "ElasticNetCV", "Lasso", "LassoCV", "LinearSVR"),
        (_regressor, _PREDICT),
    ),
    "LogisticRegression": (_classifier, (*_DECISION, *_PROBABILITIES)),
    **dict.fromkeys(("LinearSVC", "RidgeClassifier", "Perceptron", "SGDClassifier"), (_classifier, _DECISION)),
    "MLPClassifier": (_mlp_classifier, _PROBABILITIES),
    "MLPRegressor": (_mlp_regressor, _PREDICT),
}
"""By class of scikit-learn, subclasses included: what makes its steps, and the methods whose results it can give."""
