"""Heads in program files: they are loaded as they were saved, fingerprints cover them, and bad ones are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olac.ir.head import (
    Affine,
    ArgMax,
    Elementwise,
    LogSoftmax,
    Max,
    Normalize,
    OutputHead,
    Reshape,
    Slice,
    Softmax,
    Step,
)
from olac.program.program import CompiledProgram
from tests.program.test_artifact import _outer, _refused, _rewrite, _write
from tests.runtime.small_program import images, small_program

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")

ALL = (
    Affine((0.5,), (0.0,)),
    Affine((1.0, 2.0, 3.0, 4.0, 0.1), (0.0, -1.0, 1e-300, 1.0, 0.0), (5,)),
    Elementwise("hardtanh", (-1.7976931348623157e308, 2.0)),
    LogSoftmax(0),
    Elementwise("exp"),
    Softmax(0),
    Normalize(0),
    Slice(((0, 4, 1),)),
    Reshape((2, 2)),
    Max(1, keepdim=True),
    ArgMax(0),
    Reshape(()),
)


@pytest.fixture(scope="module")
def program() -> CompiledProgram:
    return small_program()


def test_heads_come_back(program: CompiledProgram, tmp_path: Path) -> None:
    given = replace(program, head=OutputHead(ALL))
    given.save(tmp_path / "p.olac")
    loaded = CompiledProgram.load(tmp_path / "p.olac")
    assert loaded.head == given.head and loaded.fingerprint == given.fingerprint
    assert loaded.output_shape == ()
    outputs = loaded.simulate(images(3))
    assert outputs.shape == (3,) and outputs.dtype == np.int64
    np.testing.assert_array_equal(outputs, given.simulate(images(3)))
    np.testing.assert_array_equal(loaded.simulate(images(3), raw=True), program.simulate(images(3)))


def test_the_fingerprint_tells_heads_apart(program: CompiledProgram) -> None:
    heads: list[tuple[Step, ...]] = [
        (),
        (Softmax(0),),
        (LogSoftmax(0),),
        (ArgMax(0),),
        (ArgMax(0, keepdim=True),),
        (Affine((2.0,), (0.0,)),),
        (Affine((2.0,), (1e-9,)),),
        (Affine((2.0,), (0.0,)), Softmax(0)),
        (Softmax(0), Affine((2.0,), (0.0,))),
        (Reshape((5, 1)),),
    ]
    assert len({replace(program, head=OutputHead(steps)).fingerprint for steps in heads}) == len(heads)


def test_files_without_a_head(program: CompiledProgram, tmp_path: Path) -> None:
    path = tmp_path / "p.olac"
    program.save(path)
    _rewrite(path, lambda manifest: manifest.pop("head"))
    _refused(path, "does not have the parts")
    _write(path, _outer(path) | {"version": 4})  # files of version 4 have no head
    loaded = CompiledProgram.load(path)
    assert loaded.head == OutputHead() and loaded.fingerprint == program.fingerprint


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (None, ["head", "expected a list"]),
        ({}, ["head", "expected a list"]),
        (["softmax"], ["head[0]", "unknown step"]),
        ([{"kind": "exec", "code": "1"}], ["head[0]", "unknown step 'exec'"]),
        ([{"kind": "softmax"}], ["head[0]", "axis"]),
        ([{"kind": "softmax", "axis": 0, "more": 1}], ["head[0]", "expected the fields"]),
        ([{"kind": "softmax", "axis": True}], ["head[0].axis", "bool"]),
        ([{"kind": "softmax", "axis": 0.0}], ["head[0].axis", "float"]),
        ([{"kind": "softmax", "axis": 1}], ["head", "no axis 1"]),
        ([{"kind": "argmax", "axis": -1, "keepdim": False}], ["head", "no axis -1"]),
        ([{"kind": "argmax", "axis": 0, "keepdim": 0}], ["head[0].keepdim", "int"]),
        ([{"kind": "reshape", "shape": [4]}], ["head", "(4,)"]),
        ([{"kind": "reshape", "shape": [-1, -5]}], ["head", "(-1, -5)"]),
        ([{"kind": "reshape", "shape": [1 << 70]}], ["head[0].shape", "too large"]),
        ([{"kind": "slice", "slices": [[0, 9, 0]]}], ["head", "slices"]),
        ([{"kind": "elementwise", "function": "__import__", "parameters": []}], ["head[0]", "no function"]),
        ([{"kind": "elementwise", "function": "softplus", "parameters": []}], ["head[0]", "0 parameters"]),
        ([{"kind": "elementwise", "function": "relu", "parameters": [1.0]}], ["head[0]", "1 parameters"]),
        ([{"kind": "elementwise", "function": "elu", "parameters": [float("nan")]}], ["head[0]", "finite"]),
        ([{"kind": "elementwise", "function": "elu", "parameters": [float("inf")]}], ["head[0]", "finite"]),
        ([{"kind": "affine", "scale": [1.0], "shift": [10**400], "shape": []}], ["head[0].shift", "finite"]),
        ([{"kind": "affine", "scale": [1.0], "shift": [], "shape": []}], ["head[0]", "0 shifts"]),
        ([{"kind": "affine", "scale": [1.0] * 2, "shift": [0.0] * 2, "shape": [2]}], ["head", "(2,)"]),
        ([{"kind": "softmax", "axis": 0}], ["fingerprint"]),
    ],
)
def test_impossible_heads_are_refused(program: CompiledProgram, tmp_path: Path, head: Any, words: list[str]) -> None:
    path = tmp_path / "p.olac"
    program.save(path)
    _rewrite(path, lambda manifest: manifest.update(head=head))
    _refused(path, *words)
