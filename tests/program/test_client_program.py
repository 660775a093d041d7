"""What clients know of a program: enough to make keys, encrypt and decrypt, and nothing of the model."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.cli import main
from olac.errors import ArtifactError, InputError, SecurityError
from olac.program.client_program import ClientProgram, _digest
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Server
from olac.system.formats import CLIENT_PROGRAMS
from tests.runtime.engines import engine as engine
from tests.runtime.small_program import ERROR, images, small_program

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


class SecretlyNamed(nn.Module):
    """A model with names that must not get out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.confidential_block = nn.Linear(6, 5)
        self.hidden_scorer = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.hidden_scorer(torch.relu(self.confidential_block(x)))
        return torch.softmax(scores, dim=1)


def test_a_clients_file_is_small_and_says_nothing_of_the_model(tmp_path: Path) -> None:
    model = SecretlyNamed().eval()
    data = torch.rand(256, 6, generator=torch.Generator().manual_seed(1))
    program = olac.compile(model, [data], degree=3, method="channel")
    program.save(tmp_path / "program.olac")
    program.client().save(tmp_path / "client.json")
    whole, text = (tmp_path / "program.olac").read_bytes(), (tmp_path / "client.json").read_bytes()
    for word in (
        b"confidential",
        b"hidden_scorer",
        b"forward",
        b".py",
        b"polynomial",
        b"relu",
        b"coefficients",
        b"note",
    ):
        assert word not in text
    assert b"confidential" in whole  # the test would see it
    # No constant and no weight, in any notation that such files have.
    for array in program.graph.constants.values():
        for value in array.reshape(-1):
            if abs(value) > 1e-3 and value not in (0.5, 1.0, 2.0):
                assert repr(float(value)).encode() not in text
                assert np.float64(value).tobytes() not in text
    assert len(text) < 4000
    assert program.head and json.loads(text)["client"]["head"][0]["kind"] == "softmax"

    client = Client(ClientProgram.load(tmp_path / "client.json"))
    assert client.program == program.client()
    answer = client.decrypt(Server(program, client.generate_keys()).run(client.encrypt(data[:1])))
    np.testing.assert_allclose(answer, program.simulate(data[:1]), atol=1e-2)
    np.testing.assert_allclose(answer, model(data[:1]).detach().numpy(), atol=0.1)


@pytest.mark.encrypted
def test_clients_of_a_description_and_of_the_program_are_alike(tmp_path: Path, engine: str) -> None:
    program = small_program(batch=2)
    described = ClientProgram.from_bytes(program.client().to_bytes())
    assert described == program.client() == described.client() and described.fingerprint == program.fingerprint
    assert (described.input_shape, described.output_shape) == (program.input_shape, program.output_shape)
    assert (described.batch, described.rotations) == (program.batch, program.rotations)
    assert described.keys_for(program.planned_for) == program.keys_for(program.planned_for)
    client = Client(described)
    assert client.key_file_bytes == Client(program).key_file_bytes
    assert client.memory_bytes == Client(program).memory_bytes
    keys = client.generate_keys()
    client.save_secret_key(tmp_path / "secret.key")
    keys.save(tmp_path / "evaluation.keys")
    both = [Client.load(one, tmp_path / "secret.key") for one in (described, program)]
    server = Server(program, EvaluationKeys.load(described, tmp_path / "evaluation.keys"))
    for one, other in (both, both[::-1]):
        given = EncryptedInput.from_bytes(program, one.encrypt(images(2)).to_bytes())
        result = EncryptedResult.from_bytes(described, server.run(given).to_bytes())
        np.testing.assert_allclose(other.decrypt(result, of=given), program.simulate(images(2)), atol=ERROR)
        assert pickle.loads(pickle.dumps(result)).to_bytes() == result.to_bytes()
        assert one.encrypt(images(3)).sets == 2
        with pytest.raises(InputError, match="channels 0, 1 of the input"):
            one.encrypt(images() + 100.0)
    with pytest.raises(ArtifactError, match="expected a program"):
        Server(described, keys)  # type: ignore[arg-type]
    assert copy.deepcopy(described) == pickle.loads(pickle.dumps(described)) == described


@pytest.mark.encrypted
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_commands_take_a_clients_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    program = small_program()
    paths = {
        name: str(tmp_path / name) for name in ("p.olac", "c.json", "x.npy", "in.enc", "out.enc", "out.npy", "keys")
    }
    program.save(paths["p.olac"])
    np.save(paths["x.npy"], images())
    secret, evaluation = f"{paths['keys']}/secret.key", f"{paths['keys']}/evaluation.keys"
    assert main(["client", paths["p.olac"], "-o", paths["c.json"]]) == 0
    assert main(["client", paths["p.olac"], "-o", paths["p.olac"]]) == 1
    assert CompiledProgram.load(paths["p.olac"]).fingerprint == program.fingerprint
    assert main(["keygen", paths["c.json"], paths["keys"]]) == 0
    assert "GB of memory" in capsys.readouterr().out
    assert main(["encrypt", paths["c.json"], secret, paths["x.npy"], paths["in.enc"]]) == 0
    assert main(["run", paths["p.olac"], evaluation, paths["in.enc"], paths["out.enc"]]) == 0
    assert (
        main(["decrypt", paths["c.json"], secret, paths["out.enc"], paths["out.npy"], "--input", paths["in.enc"]]) == 0
    )
    np.testing.assert_allclose(np.load(paths["out.npy"]), program.simulate(images()), atol=ERROR)
    capsys.readouterr()
    assert main(["run", paths["c.json"], evaluation, paths["in.enc"], paths["out.enc"]]) == 1
    assert "program" in capsys.readouterr().err


# Files from outside --------------------------------------------------------------------------------------------------


def written(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A description that was changed, with the hash of its new content."""
    outer = json.loads(small_program().client().to_bytes())
    change(outer["client"])
    outer["sha256"] = _digest(outer["client"])
    return json.dumps(outer).encode()


def test_a_description_in_place_of_the_program(tmp_path: Path) -> None:
    small_program().client().save(tmp_path / "client.json")
    with pytest.raises(ArtifactError, match=r"client.json: .*`olac client`.*no weights\. Give the program itself"):
        CompiledProgram.load(tmp_path / "client.json")


def test_a_changed_description_is_refused() -> None:
    data = small_program().client().to_bytes()
    ClientProgram.from_bytes(written(lambda client: None))
    for bad in (data.replace(b'"depth": 5', b'"depth": 4'), data.replace(b'"unit": 2.0', b'"unit": 4.0')):
        assert bad != data
        with pytest.raises(ArtifactError, match="its hash is wrong"):
            ClientProgram.from_bytes(bad)
    current, version = CLIENT_PROGRAMS.current, CLIENT_PROGRAMS.current + 1
    newer = data.replace(f'"version": {current}'.encode(), f'"version": {version}'.encode(), 1)
    with pytest.raises(ArtifactError, match=rf"version {version}.*Update olac"):
        ClientProgram.from_bytes(newer)


def test_names_of_outputs_are_kept_and_checked() -> None:
    names = ("a", "b", "c", "d", "e")
    program = replace(small_program(), output_names=names)
    assert program.fingerprint == small_program().fingerprint  # names decide nothing of what is computed
    client = ClientProgram.from_bytes(program.client().to_bytes())
    assert client == program.client() and client.output_names == names
    assert CompiledProgram.from_bytes(program.to_bytes()).output_names == names
    outputs = program.simulate(images())
    assert client.named(outputs)[0] == dict(zip(names, outputs[0].tolist(), strict=True))
    with pytest.raises(ArtifactError, match="4 class_names for 5 outputs"):
        CompiledProgram.from_bytes(replace(program, output_names=names[1:]).to_bytes())


def test_a_description_of_version_1_has_no_names() -> None:
    outer = json.loads(small_program().client().to_bytes())
    del outer["client"]["output_names"]
    earlier = json.dumps(outer | {"version": 1, "sha256": _digest(outer["client"])}).encode()
    assert ClientProgram.from_bytes(earlier) == small_program().client()
    with pytest.raises(ArtifactError, match="expected the fields"):
        ClientProgram.from_bytes(json.dumps(json.loads(earlier) | {"version": 2}).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"OLAC" + bytes(60), b"\xff\xfe", b"[" * 100_000, b"null"])
def test_what_is_no_description(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="description"):
        ClientProgram.from_bytes(data)
    small_program().save(tmp_path / "p.olac")
    with pytest.raises(ArtifactError, match=r"p\.olac: not the client's description"):
        ClientProgram.load(tmp_path / "p.olac")
    with pytest.raises(ArtifactError, match="does not exist"):
        ClientProgram.load(tmp_path / "missing")


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(client: dict[str, Any]) -> None:
        at: Any = client
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("more", value=1), "expected the fields"),
        (lambda client: client.pop("head"), "expected the fields"),
        (_set("fingerprint", value="x" * 64), "hexadecimal"),
        (_set("fingerprint", value=7), "fingerprint"),
        (_set("engine", value="third"), "unknown engine"),
        (_set("levels", 0, value=[0, 1]), "steps are not within"),
        (_set("levels", 0, value=[1 << 20, 1]), "increase"),
        (_set("levels", 0, 1, value=6), "levels are not within"),
        (_set("product_level", value=-1), "levels are not within"),
        (_set("product_level", value=True), "product_level is a bool"),
        (_set("parameters", "log_ring", value=40), "ring dimension"),
        (_set("input", "type", "shape", value=[2, 0, 4]), "empty"),
        (_set("input", "type", "shape", value=[2, 4, 2]), "shape"),
        (_set("input", "type", "batch", value=2), "batch"),
        (_set("input", "type", "unit", value=0.0), "unit is not positive"),
        (_set("input", "type", "unit", value=1e999), "finite"),
        (_set("input", "type", "layout", value=None), "no layout"),
        (_set("input", "type", "layout", "slots", value=1 << 40), "slots"),
        (_set("input", "type", "state", value=None), "no level"),
        (_set("input", "type", "state", "level", value=6), "no level"),
        (_set("input", "type", "state", "noise_degree", value=2), "noise degree"),
        (_set("output", "type", "state", "scale", value=1.0), "scale"),
        (_set("input", "offsets", value=[1.0]), "offsets"),
        (_set("output", "factors", value=[1.0]), "only inputs have"),
        (_set("output", "type", "channels", value=[{"low": 0.0, "high": 1.0}]), "ranges for 5 channels"),
        (_set("head", value=[{"kind": "argmax", "axis": 3, "keepdim": False}]), "axis"),
        (_set("head", value=[{"kind": "code"}]), "unknown step"),
        (_set("output_names", value=["a"]), "1 class_names for 5 outputs"),
        (_set("output_names", value=["a", "b", "c", "d", "\x1b[2J"]), "can't be shown"),
        (_set("output_names", value="abcde"), "output_names is a str"),
    ],
)  # fmt: skip
def test_descriptions_that_make_no_sense(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        ClientProgram.from_bytes(written(change))
    assert len(str(caught.value)) < 900


def test_descriptions_have_the_security_that_they_claim(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match=r"bytes received: log2\(QP\)"):
        ClientProgram.from_bytes(written(_set("parameters", "security", value=128)))
    insecure = replace(small_program().client())
    insecure.save(tmp_path / "client.json")
    with pytest.warns(UserWarning, match=r"client\.json was compiled without security"):
        ClientProgram.load(tmp_path / "client.json")
