"""Runs and calibrations on a cluster of two raylets: bit-equal to this process, and nothing lost with a worker."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from olac.ckks.key_list import KeyList
from olac.cli import main
from olac.errors import BackendError, CalibrationError, MissingKeyError
from olac.runtime import Client, EncryptedInput, EvaluationKeys, save_parts
from olac.scaling import calibrate_parts, run_batches
from tests.runtime.small_program import ERROR, images, small_program
from tests.scaling import small_calibration
from tests.scaling.two_raylets import NODE, send, wait_for_workers, workers

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

RUNNER = "ray::Runner"


class Sent:
    """A client, its keys, its input of 6 sets of ciphertexts, and the digests of the results in this process."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.program = small_program(batch=2)
            self.client = Client(self.program)
            self.keys, self.given = self.client.generate_keys(), self.client.encrypt(images(12))
            self.wanted = [one.digest for one in run_batches(self.program, self.keys, self.given, sets=1)]

    def parts(self, before: dict[int, Any]) -> Iterator[EncryptedInput]:
        """The sets of the input, one by one; something may be done before some of them are given."""
        for number in range(self.given.sets):
            before.get(number, lambda: None)()
            yield self.given.part(number, 1)


@pytest.fixture(scope="module")
def sent() -> Sent:
    return Sent()


def stop_and_kill() -> None:
    """Stop all runners, so that what they are given now is not computed, and kill them a little later."""
    found = workers(RUNNER)
    assert found
    send(found, signal.SIGSTOP)
    threading.Timer(0.5, send, [found, signal.SIGKILL]).start()


def test_bit_equal_and_the_actors_end(cluster: Any, sent: Sent) -> None:
    """Of three actors two find a machine, and these suffice."""
    results = list(run_batches(sent.program, sent.keys, sent.given, executor="ray", actors=3, sets=1))
    assert [one.digest for one in results] == sent.wanted
    found = np.concatenate([sent.client.decrypt(one) for one in results])
    np.testing.assert_allclose(found, sent.program.simulate(images(12)), atol=ERROR)
    pause = threading.Event()
    for _ in range(100):
        if not workers(RUNNER):
            return
        pause.wait(0.1)
    pytest.fail("actors are left")


def test_a_killed_actors_work_is_done_again(cluster: Any, sent: Sent) -> None:
    """Keys that came from outside go into the object store one by one."""
    loaded = EvaluationKeys.from_bytes(sent.program, sent.keys.to_bytes())
    results = run_batches(sent.program, loaded, sent.parts({3: stop_and_kill}), executor="ray")
    assert [one.digest for one in results] == sent.wanted


def test_the_command_writes_the_file_of_one_run(cluster: Any, sent: Sent, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("p.olac", "evaluation.keys", "x.enc", "y.enc")]
    sent.program.save(places[0])
    sent.keys.save(places[1])
    sent.given.save(places[2])
    run = ["run", *map(str, places), "--executor", "ray", "--workers", "2"]
    assert main([*run, "--checkpoint", str(tmp_path / "checkpoints")]) == 0
    whole = next(run_batches(sent.program, sent.keys, sent.given))
    assert places[-1].read_bytes() == whole.to_bytes()


def test_a_lost_machines_work_is_done_again(cluster: Any, sent: Sent, tmp_path: Path) -> None:
    """Actors read the keys from a folder themselves, and write checkpoints, which are deleted when parts are done."""
    folder, checkpoints = tmp_path / "keys", tmp_path / "checkpoints"
    save_parts(sent.keys, folder)
    (_, second) = cluster.list_all_nodes()

    def lose() -> None:
        cluster.remove_node(second, allow_graceful=False)

    given = sent.parts({0: lambda: wait_for_workers(RUNNER, 2), 3: lose})
    try:
        results = list(run_batches(sent.program, folder, given, executor="ray", actors=2, checkpoints=checkpoints))
    finally:
        cluster.add_node(**NODE)
    assert [one.digest for one in results] == sent.wanted
    assert list(checkpoints.iterdir()) == []


def test_a_part_that_is_lost_too_often(cluster: Any, sent: Sent) -> None:
    """The actor has part 2 when it is killed, and perhaps still part 1 before it."""
    given = sent.parts({2: stop_and_kill})
    results = run_batches(sent.program, sent.keys, given, executor="ray", attempts=1)
    with pytest.raises(BackendError, match=r"part [12] of the inputs got lost 1 times .*max_memory"):
        list(results)


def test_errors_of_a_server_arrive_as_they_are(cluster: Any, sent: Sent) -> None:
    loaded = EvaluationKeys.from_bytes(sent.program, sent.keys.to_bytes())
    fewer = loaded.some(KeyList(loaded.listed.rotations[1:], loaded.listed.relinearise))
    with pytest.raises(MissingKeyError, match="more_keys"):
        list(run_batches(sent.program, fewer, sent.given, executor="ray"))


def test_calibration_is_bit_equal_and_a_killed_tasks_work_is_done_again(cluster: Any, tmp_path: Path) -> None:
    x, model, mark = small_calibration.images(768), small_calibration.net(), tmp_path / "was killed"

    def dies_once() -> list[torch.Tensor]:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [x[256:512]]

    found = calibrate_parts(model, [x[:256], dies_once, x[512:]], executor="ray", tasks=2)
    assert mark.exists()
    local = calibrate_parts(model, [x[:256], x[256:512], x[512:]])
    small_calibration.assert_same(found, local)
    np.testing.assert_array_equal(found.held_out_outputs, local.held_out_outputs)


def test_a_calibration_that_is_lost_too_often(cluster: Any) -> None:
    def dies() -> list[torch.Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    with pytest.raises(BackendError, match=r"part 0 of the calibration got lost .*attempts=1"):
        calibrate_parts(small_calibration.net(), [dies], executor="ray", attempts=1)


def test_errors_of_a_calibration_arrive_as_they_are(cluster: Any) -> None:
    bad = torch.full((16, 2, 4, 4), float("nan"))
    with pytest.raises(CalibrationError, match="NaN"):
        calibrate_parts(small_calibration.net(), [bad], executor="ray")
