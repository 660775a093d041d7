"""Keys of bootstrapped programs are made and loaded beside runs: OpenFHE's maps are emptied for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from olac.backends.openfhe import key_maps
from olac.errors import InfeasibleError
from olac.runtime import Client, EvaluationKeys, Server
from olac.runtime import server as server_module
from tests.runtime.small_program import ERROR, deep_program, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


def test_runs_are_right_while_keys_are_made_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # a run has helpers
    program, deep = small_program(), deep_program()
    client = Client(program)
    server = Server(program, client.generate_keys())
    given, expected = client.encrypt(images()), program.simulate(images())
    done, wrong = threading.Event(), []
    runs = [0]

    def serve() -> None:
        while not done.is_set():
            try:
                error = np.max(np.abs(client.decrypt(server.run(given)) - expected))
                if error > ERROR:
                    wrong.append(error)
            except Exception as problem:
                wrong.append(problem)
            runs[0] += 1
            done.wait(0.05)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        first = Client(deep).generate_keys()
        beside_making = runs[0]
        with Server(deep, EvaluationKeys.from_bytes(deep, first.to_bytes())):
            beside_both = runs[0]
    finally:
        done.set()
        serving.join(60)
    assert not wrong, wrong[:3]
    assert 0 < beside_making < beside_both


def test_servers_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program()
    client = Client(program)
    keys = client.generate_keys()
    both = threading.Barrier(2)
    given = client.encrypt(images())
    answers: list[Any] = []

    def run(server: Server) -> None:
        evaluator = server._open().evaluator
        restart: Callable[[], None] = evaluator.restart

        def meet() -> None:  # in the middle of a run, with the lock
            both.wait(60)
            restart()

        monkeypatch.setattr(evaluator, "restart", meet)
        answers.append(client.decrypt(server.run(given)))

    threads = [threading.Thread(target=run, args=(Server(program, keys),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 2
    for answer in answers:
        np.testing.assert_allclose(answer, program.simulate(images()), atol=ERROR)


@pytest.mark.parametrize("paged", [False, True])
def test_who_wants_to_change_maps_waits_for_a_node_and_not_for_a_run(
    monkeypatch: pytest.MonkeyPatch, paged: bool
) -> None:
    program = small_program()
    client = Client(program)
    keys = EvaluationKeys.from_bytes(program, client.generate_keys().to_bytes())
    if paged:

        def two_at_a_time(self: Server, keys: EvaluationKeys, max_memory: float | None) -> tuple[float, int]:
            self._predicted = dict.fromkeys((node.id for node in program.graph.nodes), 0.0)
            return 0.0, 2

        monkeypatch.setattr(Server, "_check_memory", two_at_a_time)
    server = Server(program, keys)
    assert (server.pages is not None) == paged
    changed, order = threading.Event(), []

    def change() -> None:
        with key_maps.others_aside():
            order.append("changed")
        changed.set()

    changing = threading.Thread(target=change)

    def progress(done: object) -> None:
        if not changing.ident:
            changing.start()
            assert changed.wait(60)
        order.append("node")

    answer = client.decrypt(server.run(client.encrypt(images()), progress))
    assert order == ["changed"] + ["node"] * len(program.graph.nodes)
    assert key_maps.KEY_MAPS._owner is None and not key_maps.KEY_MAPS._users
    np.testing.assert_allclose(answer, program.simulate(images()), atol=ERROR)


def test_who_stops_waiting_for_the_maps_keeps_nobody_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, begun, end = key_maps.MapsLock(), threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        assert end.wait(60)

    at_work = threading.Thread(target=maps.do_later, args=(job,))
    at_work.start()
    assert begun.wait(60)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(maps._changed, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt), maps.changing():
            pass
    end.set()
    at_work.join(60)
    changed = threading.Event()

    def change() -> None:
        with maps.changing():
            changed.set()

    threading.Thread(target=change, daemon=True).start()
    assert changed.wait(10)


def test_errors_of_the_caller_pass_as_they_are() -> None:
    program = small_program()
    client = Client(program)

    def stop(*given: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match=r"^enough$"):
        client.generate_keys(stop)
    server = Server(program, client.generate_keys())
    given = client.encrypt(images())
    for calls in ({"progress": stop}, {"observe": stop}):
        with pytest.raises(RuntimeError, match=r"^enough$"):
            server.run(given, **calls)  # type: ignore[arg-type]
    np.testing.assert_allclose(client.decrypt(server.run(given)), program.simulate(images()), atol=ERROR)


def test_threads_that_can_not_be_started_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program()
    client = Client(program)
    server = Server(program, client.generate_keys())

    def execute(*given: object, **more: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server_module, "execute", execute)
    with pytest.raises(InfeasibleError, match="running the program: memory ran out"):
        server.run(client.encrypt(images()))
