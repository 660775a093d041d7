"""Programs as files: they are loaded as they were saved, and everything else is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from olac.ckks.engines import ENGINES
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import ArtifactError, SecurityError, VerificationError
from olac.ir.graph import Graph, GraphBuilder
from olac.ir.lowerings import Diagonals, Multiplexed
from olac.ir.ops import Input, Linear
from olac.ir.types import Range, Stage, ValueType
from olac.kernels.record import record
from olac.passes.base import PassContext, PassManager
from olac.passes.pipeline import lowering_pipeline
from olac.program.artifact import FILES, save_program
from olac.program.program import CompiledProgram
from olac.system.formats import PROGRAMS
from tests.ckks.picky_engine import MOST_BITS, PICKY
from tests.runtime.bootstrapped_program import bootstrapped_program
from tests.runtime.small_program import images, small_program

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


@pytest.fixture(scope="module")
def program() -> CompiledProgram:
    return small_program(FLEXIBLE)


@pytest.fixture
def path(program: CompiledProgram, tmp_path: Path) -> Path:
    target = tmp_path / "small.olac"
    program.save(target)
    return target


def _outer(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    outer: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][FILES.entry])
    return outer


def _write(path: Path, outer: dict[str, Any], constants: dict[str, Any] | None = None) -> None:
    save_file(load_file(path) if constants is None else constants, path, metadata={FILES.entry: json.dumps(outer)})


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and write the right hash of it, as an attacker can."""
    outer = _outer(path)
    manifest = json.loads(outer["manifest"])
    change(manifest)
    text = json.dumps(manifest)
    _write(path, outer | {"manifest": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def _refused(path: Path, *words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        CompiledProgram.load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "bug" not in message and len(message) < 1000
    for word in words:
        assert word in message


def test_a_program_comes_back_as_it_was(program: CompiledProgram, path: Path) -> None:
    loaded = CompiledProgram.load(path)
    assert loaded.graph == program.graph
    assert loaded.parameters == program.parameters
    assert loaded.rotations == program.rotations
    assert loaded.report == program.report
    assert loaded.fingerprint == program.fingerprint
    assert [node.origin for node in loaded.graph.nodes] == [node.origin for node in program.graph.nodes]
    x = images(3)
    np.testing.assert_array_equal(loaded.simulate(x), program.simulate(x))
    again = path.with_name("again.olac")
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_strided_constants_and_scalars_are_stored_by_value(program: CompiledProgram, tmp_path: Path) -> None:
    graph = program.graph
    strided = {name: np.asfortranarray(a.copy()) for name, a in graph.constants.items()}
    other = replace(program, graph=Graph(graph.nodes, graph.outputs, strided, graph.stage))
    save_program(other, tmp_path / "p.olac")
    assert CompiledProgram.load(tmp_path / "p.olac").graph == graph


def test_saving_replaces_the_file_whole_or_not_at_all(program: CompiledProgram, path: Path, tmp_path: Path) -> None:
    program.save(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(ArtifactError, match="doesn't exist"):
        program.save(tmp_path / "no such folder" / "p.olac")


def test_loading_an_insecure_program_warns(path: Path) -> None:
    with pytest.warns(UserWarning, match="without security"):
        CompiledProgram.load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    _refused(tmp_path / "missing.olac", "does not exist")
    _refused(tmp_path, "is not a file")


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 100, b"\xff" * 100, b"OLAC" + bytes(200), b"PK\x03\x04" * 50])
def test_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    _refused(path)


def test_other_safetensors_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"w": np.ones(3)}))
    _refused(path, "not a program of olac")


def test_every_truncation_is_refused(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    cut = tmp_path / "cut.olac"
    for length in {*range(0, 40), *range(0, len(data), 97), len(data) - 1}:
        cut.write_bytes(data[:length])
        _refused(cut)
    cut.write_bytes(data + b"\0")
    _refused(cut)


def test_every_bit_flip_is_refused(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    changed = tmp_path / "changed.olac"
    rng = np.random.default_rng(0)
    for at in {*range(0, 64), *(int(i) for i in rng.integers(len(data), size=150))}:
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        changed.write_bytes(flipped)
        _refused(changed)


def test_a_newer_version_says_update(path: Path) -> None:
    _write(path, _outer(path) | {"version": PROGRAMS.current + 1})
    _refused(path, f"version {PROGRAMS.current + 1}", "Update olac")


def test_an_older_version_says_compile_again(path: Path) -> None:
    for version in (2, 3):
        _write(path, _outer(path) | {"version": version})
        _refused(path, f"version {version}", "Compile the model again")


def test_a_changed_constant_changes_the_fingerprint(path: Path) -> None:
    constants = load_file(path)
    constants["fc.weight"][0, 0] += 1e-9
    _write(path, _outer(path), constants)
    _refused(path, "fingerprint")


def test_constants_of_another_type_missing_or_extra(path: Path) -> None:
    outer, constants = _outer(path), load_file(path)
    _write(path, outer, constants | {"fc.weight": constants["fc.weight"].astype(np.float32)})
    _refused(path, "float32")
    _write(path, outer, constants | {"extra": np.ones(2)})
    _refused(path, "extra")
    _write(path, outer, {k: v for k, v in constants.items() if k != "conv.bias"})
    _refused(path)
    _write(path, outer, constants | {"conv.bias": np.full(3, np.nan)})
    _refused(path, "finite")
    _write(path, outer, constants | {"mix.index": np.array([0.0, 1.0, 2.0, 3.0, 5.0])})
    _refused(path, "indices")


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "unknown op": lambda m: m["graph"]["nodes"][1].update(op="teleport"),
    "bootstrap": lambda m: m["graph"]["nodes"][1].update(op="bootstrap", attributes={}, lowering=None),
    "max-pooling": lambda m: m["graph"]["nodes"][1].update(
        op="max_pool2d",
        attributes={"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "ceil_mode": False},
    ),
    "unhashable op": lambda m: m["graph"]["nodes"][1].update(op=["conv2d"]),
    "no attributes": lambda m: m["graph"]["nodes"][1].update(attributes={}),
    "extra attribute": lambda m: m["graph"]["nodes"][1]["attributes"].update(__class__="x"),
    "stride 0": lambda m: m["graph"]["nodes"][1]["attributes"].update(stride=[0, 1]),
    "three strides": lambda m: m["graph"]["nodes"][1]["attributes"].update(stride=[1, 1, 1]),
    "stride true": lambda m: m["graph"]["nodes"][1]["attributes"].update(stride=[True, 1]),
    "shape of strings": lambda m: m["graph"]["nodes"][1]["type"].update(shape=["3", 4, 4]),
    "other shape": lambda m: m["graph"]["nodes"][1]["type"].update(shape=[3, 4, 5]),
    "huge shape": lambda m: m["graph"]["nodes"][0]["attributes"].update(shape=[2, 1 << 40, 1 << 40]),
    "unit 0": lambda m: m["graph"]["nodes"][1]["type"].update(unit=0.0),
    "unit NaN": lambda m: m["graph"]["nodes"][1]["type"].update(unit=float("nan")),
    "no layout": lambda m: m["graph"]["nodes"][1]["type"].update(layout=None),
    "other slots": lambda m: m["graph"]["nodes"][1]["type"]["layout"].update(slots=1 << 40),
    "gap 0": lambda m: m["graph"]["nodes"][1]["type"]["layout"].update(gap=0),
    "level -1": lambda m: m["graph"]["nodes"][1]["type"]["state"].update(level=-1),
    "level 99": lambda m: m["graph"]["nodes"][0]["type"]["state"].update(level=99),
    "level kept": lambda m: m["graph"]["nodes"][1]["type"]["state"].update(level=5),
    "scale 0": lambda m: m["graph"]["nodes"][1]["type"]["state"].update(scale=0),
    "scale 2^60": lambda m: m["graph"]["nodes"][1]["type"]["state"].update(scale=2.0**60),
    "operand unknown": lambda m: m["graph"]["nodes"][1].update(inputs=["nothing"]),
    "operand of itself": lambda m: m["graph"]["nodes"][1].update(inputs=["conv"]),
    "two operands": lambda m: m["graph"]["nodes"][1].update(inputs=["x", "x"]),
    "copies shifted by 3": lambda m: m["graph"]["nodes"][0]["type"]["layout"].update(step=3),
    "copies shifted by less than 0": lambda m: m["graph"]["nodes"][0]["type"]["layout"].update(step=-8),
    "copies shifted by their period": lambda m: m["graph"]["nodes"][0]["type"]["layout"].update(step=32),
    "copies shifted by a float": lambda m: m["graph"]["nodes"][0]["type"]["layout"].update(step=8.0),
    "no word of copies": lambda m: m["graph"]["nodes"][0]["type"]["layout"].pop("step"),
    "shifted copies of a linear result": lambda m: m["graph"]["nodes"][1]["type"]["layout"].update(step=8),
    "shifted copies of a larger result": lambda m: m["graph"]["nodes"][0]["type"]["layout"].update(step=8),
    "no lowering": lambda m: m["graph"]["nodes"][1].update(lowering=None),
    "no kind of lowering": lambda m: m["graph"]["nodes"][1]["lowering"].pop("kind"),
    "unknown kind of lowering": lambda m: m["graph"]["nodes"][1]["lowering"].update(kind="teleport"),
    "unhashable kind of lowering": lambda m: m["graph"]["nodes"][1]["lowering"].update(kind=["diagonals"]),
    "a lowering of text": lambda m: m["graph"]["nodes"][1].update(lowering="diagonals"),
    "another lowering's fields": lambda m: m["graph"]["nodes"][1]["lowering"].update(kind="multiplexed"),
    "another lowering": lambda m: m["graph"]["nodes"][1].update(lowering={"kind": "multiplexed"}),
    "baby 0": lambda m: m["graph"]["nodes"][1]["lowering"].update(baby=0),
    "imaginary 3": lambda m: m["graph"]["nodes"][1]["lowering"].update(imaginary=3),
    "imaginary beyond": lambda m: m["graph"]["nodes"][1]["lowering"].update(imaginary=1 << 14),
    "no word of channels": lambda m: m["graph"]["nodes"][0]["type"].pop("channels"),
    "too few channels": lambda m: m["graph"]["nodes"][0]["type"].update(channels=[{"low": 0.0, "high": 1.0}]),
    "an empty range": lambda m: m["graph"]["nodes"][0]["type"].update(channels=[{"low": 1.0, "high": 0.0}] * 2),
    "other ranges": lambda m: m["graph"]["nodes"][0]["type"].update(channels=[{"low": 0.0, "high": 1.0}] * 2),
    "too few factors": lambda m: m["graph"]["nodes"][0]["attributes"].update(offsets=[0.0], factors=[1.0]),
    "factors of 0": lambda m: m["graph"]["nodes"][0]["attributes"].update(offsets=[0.0, 0.0], factors=[0.0, 1.0]),
    "other factors": lambda m: m["graph"]["nodes"][0]["attributes"].update(offsets=[0.0, 0.0], factors=[2.0, 1.0]),
    "other offsets": lambda m: m["graph"]["nodes"][0]["attributes"].update(offsets=[0.5, 0.0], factors=[1.0, 1.0]),
    "node twice": lambda m: m["graph"]["nodes"].append(m["graph"]["nodes"][1]),
    "no nodes": lambda m: m["graph"].update(nodes=[]),
    "nodes an object": lambda m: m["graph"].update(nodes={}),
    "no output": lambda m: m["graph"].update(outputs=[]),
    "output unknown": lambda m: m["graph"].update(outputs=["nothing"]),
    "earlier stage": lambda m: m["graph"].update(stage="PACKED"),
    "ring 2^40": lambda m: m["parameters"].update(log_ring=40),
    "another ring": lambda m: m["parameters"].update(log_ring=13),
    "digits 0": lambda m: m["parameters"].update(digits=0),
    "no technique": lambda m: m["parameters"].update(technique="NORESCALE"),
    "few primes": lambda m: m["parameters"].update(log_ring=17, scale_bits=21, first_bits=21, depth=100, digits=101),
    "step 0": lambda m: m["rotations"].insert(0, 0),
    "steps repeat": lambda m: m["rotations"].append(m["rotations"][-1]),
    "step too large": lambda m: m["rotations"].append(1 << 20),
    "a step fewer": lambda m: m["rotations"].pop(),
    "no report": lambda m: m.update(report={}),
    "fits of text": lambda m: m["report"].update(fits=["relu"]),
    "more parts": lambda m: m.update(code="import os"),
    "other fingerprint": lambda m: m.update(fingerprint="0" * 64),
}


def test_programs_with_shifted_copies(tmp_path: Path) -> None:
    program, path = small_program(FLEXIBLE, copies="shifted"), tmp_path / "shifted.olac"
    steps = {node.id: node.type.layout.step for node in program.graph.nodes if node.type.layout is not None}
    assert steps["act"] == steps["flat"] > 0 == steps["conv"] == steps["fc"]
    program.save(path)
    assert CompiledProgram.load(path).graph == program.graph
    assert CompiledProgram.load(path).fingerprint == program.fingerprint
    good = path.read_bytes()
    fc = [node.id for node in program.graph.nodes].index("fc")
    for modulus in (1, 1 << 11):

        def change(manifest: dict[str, Any], modulus: int = modulus) -> None:
            manifest["graph"]["nodes"][fc]["lowering"].update(modulus=modulus, baby=1)

        path.write_bytes(good)
        _rewrite(path, change)
        _refused(path, "lowered by diagonals")
    path.write_bytes(good)
    _rewrite(path, lambda m: m["graph"]["nodes"][fc - 1]["type"]["layout"].update(step=0))
    _refused(path, "reshape moves")


MULTIPLEXED: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "a linear layer": ("lowered by multiplexed", lambda n: n["fc"].update(lowering={"kind": "multiplexed"})),
    "a polynomial": ("lowered by multiplexed", lambda n: n["act"].update(lowering={"kind": "multiplexed"})),
    "the input": ("lowered by multiplexed", lambda n: n["x"].update(lowering={"kind": "multiplexed"})),
    "another layout": (
        "lowered by multiplexed",
        lambda n: n["x"]["type"]["layout"].update(padded=[4, 5], plane=32),
    ),
    "shifted copies": ("lowered by multiplexed", lambda n: n["x"]["type"]["layout"].update(step=8)),
    "diagonals": (
        "fingerprint",
        lambda n: n["conv"].update(lowering={"kind": "diagonals", "modulus": 32, "baby": 4, "imaginary": 0}),
    ),
    "one level": ("takes 2 levels", lambda n: n["conv"]["type"]["state"].update(level=5)),
    "fields": ("fields", lambda n: n["conv"]["lowering"].update(modulus=32)),
}


def test_programs_with_multiplexed_convolutions(tmp_path: Path) -> None:
    program, path = small_program(FLEXIBLE, lowering="multiplexed"), tmp_path / "multiplexed.olac"
    assert program.graph["conv"].lowering == Multiplexed()
    assert isinstance(program.graph["fc"].lowering, Diagonals)
    program.save(path)
    loaded = CompiledProgram.load(path)
    assert loaded.graph == program.graph
    assert loaded.fingerprint == program.fingerprint != small_program(FLEXIBLE).fingerprint
    x = images(2)
    np.testing.assert_array_equal(loaded.simulate(x), program.simulate(x))


@pytest.mark.parametrize("name", MULTIPLEXED)
def test_multiplexed_lowerings_that_make_no_sense(tmp_path: Path, name: str) -> None:
    path = tmp_path / "multiplexed.olac"
    small_program(FLEXIBLE, lowering="multiplexed").save(path)
    message, change = MULTIPLEXED[name]
    _rewrite(path, lambda m: change({node["id"]: node for node in m["graph"]["nodes"]}))
    _refused(path, message)


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_makes_no_sense(path: Path, name: str) -> None:
    _rewrite(path, CHANGES[name])
    _refused(path)


def _scaled(node: dict[str, Any], field: str, factor: float) -> None:
    node[field] *= factor


LATER: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "a scale a little off": ("the scale at level", lambda n: _scaled(n["conv"]["type"]["state"], "scale", 1.001)),
    "a wider interval": ("slots are for [-1, 1]", lambda n: n["act"]["attributes"].update(half_width=2.0)),
    "one value of two images": ("different numbers of images", lambda n: _of_two(n["fc"])),
    "images apart, as before there were lanes": ("fc is laid out in 4096 slots", lambda n: _apart(n["fc"])),
    "levels that are not taken": ("conv2d takes a level", lambda n: n["conv"]["type"]["state"].update(level=5)),
}


def _of_two(node: dict[str, Any]) -> None:
    node["type"].update(batch=2)
    node["type"]["layout"].update(batch=2, slots=1024)


def _apart(node: dict[str, Any]) -> None:
    node["type"].update(batch=2)
    node["type"]["layout"].update(batch=2)


@pytest.mark.parametrize("name", LATER)
def test_invariants_of_the_last_stage_are_checked(path: Path, name: str) -> None:
    """Faults that a server would only notice while it runs, or never."""
    message, change = LATER[name]
    _rewrite(path, lambda m: change({node["id"]: node for node in m["graph"]["nodes"]}))
    _refused(path, message)


def test_security_that_is_claimed_is_checked(path: Path) -> None:
    _rewrite(path, lambda m: m["parameters"].update(security=128))
    with pytest.raises(SecurityError, match=r"small\.olac.*exceeds"):
        CompiledProgram.load(path)


@pytest.mark.parametrize(("scale", "loads"), [(30, True), (33, False)])
def test_a_program_by_earlier_bounds_loads_with_a_warning_that_gives_its_bits(
    tmp_path: Path, scale: int, loads: bool
) -> None:
    """The bound for ring 2^13 was 218 bits and is 214 now; programs that exceed both are refused."""
    parameters = Parameters(13, 4, scale, 37, 5)
    assert parameters.log_qp > 214 and (parameters.log_qp < 218) == loads
    builder, kind = GraphBuilder(by="test"), ValueType((4,), bound=Range(-1.0, 1.0))
    x = builder.add(Input((4,)), name="x", type=kind)
    y = builder.add(Linear(builder.constant("fc.weight", np.eye(4))), [x], name="fc", type=kind)
    graph = PassManager(lowering_pipeline()).run(
        builder.build([y], stage=Stage.POLYNOMIAL), PassContext(parameters=parameters)
    )
    path = tmp_path / "earlier.olac"
    save_program(CompiledProgram(graph, parameters, record(graph, parameters).rotations), path)
    if loads:
        with pytest.warns(UserWarning, match=r"earlier\.olac was compiled for 128-bit .* it has 125 bits"):
            CompiledProgram.load(path)
    else:
        with pytest.raises(SecurityError, match=r"earlier\.olac.*exceeds the 218 bits"):
            CompiledProgram.load(path)


def test_what_a_file_cannot_hold_is_not_saved(program: CompiledProgram, tmp_path: Path) -> None:
    graph = program.graph
    type_ = replace(graph.nodes[0].type, bound=Range(-(1 << 80), 1 << 80))
    nodes = (replace(graph.nodes[0], type=type_), *graph.nodes[1:])
    other = replace(program, graph=Graph(nodes, graph.outputs, graph.constants, graph.stage))
    with pytest.raises((VerificationError, ValueError)):
        save_program(other, tmp_path / "p.olac")
    assert not list(tmp_path.iterdir())


# Bootstraps ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    target = tmp_path / "deep.olac"
    bootstrapped_program()[0].save(target)
    return target


def _boot(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(node for node in manifest["graph"]["nodes"] if node["op"] == "bootstrap")
    return found


def _operand(manifest: dict[str, Any]) -> dict[str, Any]:
    (name,) = _boot(manifest)["inputs"]
    found: dict[str, Any] = next(node for node in manifest["graph"]["nodes"] if node["id"] == name)
    return found


def test_a_program_with_bootstraps_comes_back_as_it_was(deep: Path) -> None:
    program, x = bootstrapped_program()
    loaded = CompiledProgram.load(deep)
    assert loaded.graph == program.graph
    assert loaded.parameters == program.parameters
    assert loaded.parameters.bootstrapping == Bootstrapping(4)
    assert loaded.fingerprint == program.fingerprint
    np.testing.assert_array_equal(loaded.simulate(x), program.simulate(x))


def test_the_set_up_is_part_of_the_fingerprint() -> None:
    program, _ = bootstrapped_program()
    for setup in (Bootstrapping(4, correction=9), Bootstrapping(4, log_slots=9)):
        other = replace(program, parameters=replace(program.parameters, bootstrapping=setup))
        assert other.fingerprint != program.fingerprint


DEEP_CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "no set-up": ("are without bootstrapping", lambda m: m["parameters"].update(bootstrapping=None)),
    "other depth": ("with bootstrapping for", lambda m: m["parameters"].update(depth=21)),
    "other rest": ("with bootstrapping for", lambda m: m["parameters"]["bootstrapping"].update(rest=5)),
    "fixed": ("loses its precision", lambda m: m["parameters"].update(technique="FIXEDMANUAL")),
    "one budget": ("budget", lambda m: m["parameters"]["bootstrapping"].update(budget=[6])),
    "budget of text": ("budget", lambda m: m["parameters"]["bootstrapping"].update(budget=["3", 3])),
    "correction 0": ("correction", lambda m: m["parameters"]["bootstrapping"].update(correction=0)),
    "too few slots": ("2^2 slots", lambda m: m["parameters"]["bootstrapping"].update(log_slots=2)),
    "all slots as a part": ("fewer than 2^10", lambda m: m["parameters"]["bootstrapping"].update(log_slots=10)),
    "a part of the slots that do not repeat": (
        "repeat after 2^7",
        lambda m: m["parameters"]["bootstrapping"].update(log_slots=7),
    ),
    "slots of text": ("log_slots", lambda m: m["parameters"]["bootstrapping"].update(log_slots="9")),
    "no slots": ("bootstrapping", lambda m: m["parameters"]["bootstrapping"].pop("log_slots")),
    "set-up of text": ("bootstrapping", lambda m: m["parameters"].update(bootstrapping="sparse")),
    "more in the set-up": ("bootstrapping", lambda m: m["parameters"]["bootstrapping"].update(iterations=2)),
    "values beyond [-1, 1]": (
        "bootstraps values up to 1e+03, beyond [-1, 1]",
        lambda m: _operand(m)["type"].update(bound={"low": -1e3 * _operand(m)["type"]["unit"], "high": 0.0}),
    ),
    "a result beyond [-1, 1]": (
        "bootstraps values up to 2, beyond [-1, 1]",
        lambda m: _boot(m)["type"].update(bound={"low": 0.0, "high": 2 * _boot(m)["type"]["unit"]}),
    ),
    "another scale": ("the scale at level", lambda m: _boot(m)["type"]["state"].update(scale=2.0**40)),
    "result too high": ("level 8 is outside 0 ... 7", lambda m: _boot(m)["type"]["state"].update(level=8)),
    "operand too low": ("bootstraps at level 3", lambda m: _operand(m)["type"]["state"].update(level=3)),
    "operand below zero": ("level -1 is", lambda m: _operand(m)["type"]["state"].update(level=-1)),
    "two operands": ("takes 1 operands", lambda m: _boot(m).update(inputs=_boot(m)["inputs"] * 2)),
    "an attribute": ("", lambda m: _boot(m)["attributes"].update(slots=8)),
    "no steps": ("rotation steps of bootstraps", lambda m: m.update(rotations=[1])),
    "a polynomial rises": (
        "rises without a bootstrap",
        lambda m: _boot(m).update(op="reshape", attributes={"shape": [2, 4, 4]}),
    ),
    "other": ("correction factor of 8", lambda m: m["parameters"]["bootstrapping"].update(correction=9)),
    "another everywhere": ("fingerprint", lambda m: _recorrect(m, 9)),
}


def _recorrect(manifest: Any, correction: int) -> None:
    manifest["parameters"]["bootstrapping"].update(correction=correction)
    for node in manifest["graph"]["nodes"]:
        if node["op"] == "bootstrap":
            node["attributes"].update(correction=correction)


@pytest.mark.parametrize("name", DEEP_CHANGES)
def test_bootstraps_that_make_no_sense(deep: Path, name: str) -> None:
    message, change = DEEP_CHANGES[name]
    _rewrite(deep, change)
    _refused(deep, message)


def test_sparse_secrets_above_their_bound_are_refused(deep: Path) -> None:
    """Ring 2^11 has no bound for them, and at 2^16 the larger bound of dense secrets does not count."""
    _rewrite(deep, lambda m: m["parameters"].update(security=128))
    with pytest.raises(SecurityError, match=r"deep\.olac.*exceeds the 0 bits.*sparse secret"):
        CompiledProgram.load(deep)
    larger = {
        "log_ring": 16,
        "depth": 28,
        "bootstrapping": {"rest": 12, "budget": [3, 3], "correction": 8, "log_slots": None},
    }
    _rewrite(deep, lambda m: m["parameters"].update(larger))
    with pytest.raises(SecurityError, match=r"exceeds the 1553 bits.*sparse secret"):
        CompiledProgram.load(deep)


def test_the_engine_is_recorded_unless_it_is_openfhe(
    program: CompiledProgram, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert b"engine" not in path.read_bytes() and CompiledProgram.load(path).engine == "openfhe"
    with pytest.raises(ValueError, match="engine 'picky' is not one of openfhe"):
        replace(program, engine="picky")
    other = tmp_path / "other.olac"
    with monkeypatch.context() as known:
        known.setitem(ENGINES, PICKY.name, PICKY)
        small = replace(program, engine="picky")
        assert small.fingerprint != program.fingerprint
        with pytest.raises(ArtifactError, match=rf"has more than {MOST_BITS} bits"):  # the chain's first prime
            CompiledProgram.from_bytes(small.to_bytes())
        known.setattr(type(PICKY), "refuses", lambda *_: None)
        small.save(other)
        found = CompiledProgram.load(other)
        assert found.engine == "picky" and found.fingerprint == small.fingerprint and found == small
    with pytest.raises(ArtifactError, match=r"unknown engine 'picky': a newer olac or an extension made it"):
        CompiledProgram.load(other)
