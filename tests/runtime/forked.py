"""A process of its own, whose children are forks: what they may do and what they are refused, as JSON.

python -m tests.runtime.forked after | before
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import olac
from olac.backends.openfhe.library import load
from olac.backends.session import find_engine
from olac.costs.table import CostTable
from olac.errors import ForkError
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Server
from tests.runtime.small_program import ERROR, images, small_program

SECONDS = 60
"""After which a child that hangs is ended."""


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a child, or the error's name."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            answer = work()
        except BaseException as error:  # the parent gets it
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    return json.loads(data) if status == 0 else f"ended by signal {status}"


def refused(work: Callable[[], Any]) -> str:
    """ "refused", or what came instead."""
    try:
        return f"returned {work()!r}"[:80]
    except ForkError as error:
        return "refused" if "after the fork" in str(error) and "spawn" in str(error) else str(error)


def served() -> list[Any]:
    """Digests of what must never repeat, and whether a whole round through bytes gives the right outputs."""
    program = small_program()
    client = Client(program)
    keys = EvaluationKeys.from_bytes(program, client.generate_keys().to_bytes())
    sent = client.encrypt(images()).to_bytes()
    answer = Server(program, keys).run(EncryptedInput.from_bytes(program, sent)).to_bytes()
    outputs = client.decrypt(EncryptedResult.from_bytes(program, answer))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "secret"
        client.save_secret_key(path)
        secret = hashlib.sha256(path.read_bytes()[-4096:]).hexdigest()
    return [
        secret,
        hashlib.sha256(sent[-4096:]).hexdigest(),
        bool(np.abs(outputs - program.simulate(images())).max() < ERROR),
    ]


def after(folder: Path) -> dict[str, Any]:
    """Forks of a process that has used OpenFHE."""
    program = small_program()
    client = Client(program)
    keys = client.generate_keys()
    client.save_secret_key(folder / "secret")
    server = Server(program, keys)
    image = client.encrypt(images())
    sent, frame = image.to_bytes(), keys.to_bytes()
    result = server.run(image)
    uses: dict[str, Callable[[], Any]] = {
        "generate_keys": lambda: Client(program).generate_keys(),
        "encrypt": lambda: client.encrypt(images()),
        "decrypt": lambda: client.decrypt(result),
        "run": lambda: server.run(image),
        "run on bytes": lambda: server.run(EncryptedInput.from_bytes(program, sent)),
        "prepare": server.prepare,
        "a server": lambda: Server(program, keys),
        "a server of bytes": lambda: Server(program, EvaluationKeys.from_bytes(program, frame)),
        "install": EvaluationKeys.from_bytes(program, frame).install,
        "keys to bytes": keys.to_bytes,
        "input to bytes": client.encrypt(images()).to_bytes,
        "result digest": lambda: server_result.digest,
        "save_secret_key": lambda: client.save_secret_key(folder / "again"),
        "load": lambda: Client.load(program, folder / "secret"),
        "measure": lambda: find_engine().slowdown(program.parameters, CostTable.default(), 1),
        "a fork of the fork": lambda: raise_again(forked(lambda: refused(lambda: client.encrypt(images())))),
    }
    server_result = server.run(image)
    held = sorted(load().CryptoContext.GetAllEvalAutomorphismKeys())

    def let_go() -> Any:
        nonlocal server, keys, client
        server.close()
        keys.close()
        client.close()
        del server, keys, client
        gc.collect()
        left = importlib.import_module("openfhe").CryptoContext.GetAllEvalAutomorphismKeys()
        return sorted(left) == held

    found = {name: forked(lambda use=use: refused(use)) for name, use in uses.items()}  # type: ignore[misc]
    answers = multiprocessing.get_context("fork").Queue()
    worker = multiprocessing.get_context("fork").Process(target=lambda: answers.put(refused(lambda: server.run(image))))
    worker.start()
    found["multiprocessing"] = answers.get(timeout=SECONDS)
    worker.join()
    return {"refused": found, "let go": forked(let_go)}


def raise_again(answer: str) -> None:
    """For an answer from below."""
    raise ForkError("after the fork, spawn" if answer == "refused" else answer)


def before() -> dict[str, Any]:
    """Forks of a process that has everything loaded, and threads of OpenMP by torch, but has not used OpenFHE."""
    import torch

    torch.exp(torch.ones(1000, 1000))
    load()
    program = small_program()

    def foreign() -> Any:
        fhe = load()
        wanted = fhe.CCParamsCKKSRNS()
        wanted.SetSecurityLevel(fhe.HEStd_NotSet)
        wanted.SetRingDim(1024)
        kept = fhe.GenCryptoContext(wanted)  # by somebody else than olac
        return forked(lambda: refused(lambda: Client(program).generate_keys())) if kept else None

    def grandchild() -> Any:
        served()
        return forked(lambda: refused(served))

    return {
        "children": [forked(served), forked(served)],
        "foreign": forked(foreign),
        "grandchild": forked(grandchild),
        "parent": served(),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    assert olac.__version__
    with tempfile.TemporaryDirectory() as place:
        json.dump({"before": before(), "after": after(Path(place))}, sys.stdout)
