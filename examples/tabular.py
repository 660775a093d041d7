# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tables: models of scikit-learn on encrypted rows
#
# A logistic regression and a multilayer perceptron for scikit-learn's table of breast tumours, computed on hundreds of
# encrypted rows at a time. docs/tutorials/tabular.md explains each step.

# %%
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import olac

rows, benign = load_breast_cancer(return_X_y=True)
order = np.random.default_rng(0).permutation(len(rows))
train, test = order[:400], order[400:]
models = {
    "logistic regression": LogisticRegression(),
    "multilayer perceptron": MLPClassifier((16,), "tanh", max_iter=400, random_state=0),
}

# %% [markdown]
# `batch=128` plans for runs of 128 rows, which share ciphertexts. A run may have more rows, or fewer. The test rows
# may lie outside the calibrated range, so `encrypt` is told to allow that.

# %%
for name, estimator in models.items():
    pipeline = make_pipeline(StandardScaler(), estimator).fit(rows[train], benign[train])
    module = olac.from_sklearn(pipeline, output="predict_proba")
    program = olac.compile(module, [rows[train].astype(np.float32)], batch=128)
    with olac.Client(program) as client, olac.Server(program, client.generate_keys()) as server:
        probabilities = client.decrypt(server.run(client.encrypt(rows[test], allow_out_of_range=True)))
    same = np.mean(probabilities.argmax(1) == pipeline.predict(rows[test]))
    error = np.abs(probabilities - pipeline.predict_proba(rows[test])).max()
    print(f"{name}: {pipeline.score(rows[test], benign[test]):.1%} of {len(test)} rows are right in the clear;")
    print(f"    encrypted, {same:.1%} get the same class; largest error of a probability {error:.3f}")
    print(f"    predicted: {program.estimate().seconds_per_image * 1000:.2f} ms a row")
    assert same > 0.95
