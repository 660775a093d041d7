"""Keys, encoded weights and what bootstraps take go with their owners, and not before."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from olac.analysis.estimate import LOADING_KEYS, UNUSED_SHARE
from olac.backends.openfhe import context
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.openfhe.key_maps import KEY_MAPS, Held, put_all
from olac.backends.openfhe.keys import make_keys, new_secret_key
from olac.backends.openfhe.library import load
from olac.backends.openfhe.session import OpenFHEClient, OpenFHEServer
from olac.backends.openfhe.wire import wire
from olac.backends.openfhe.words import new_tag
from olac.ckks.engines import OPENFHE
from olac.ckks.parameters import Parameters
from olac.errors import BackendError, ClosedError
from olac.program.program import CompiledProgram
from olac.runtime import Client, EvaluationKeys, Progress, Server
from olac.runtime import server as server_module
from olac.runtime.paging import pinned_steps
from olac.system.memory import current_rss_bytes, return_freed
from tests.runtime.key_sizes import one_key_bytes
from tests.runtime.small_program import ERROR, deep_program, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

TINY = Parameters(10, 2, 40, 50, 2, security=0)


def held() -> set[str]:
    """Tags of all keys that OpenFHE holds."""
    container = load().CryptoContext
    return {*container.GetAllEvalAutomorphismKeys(), *container.GetAllEvalMultKeys()}


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    before = held()
    yield
    assert held() <= before


def right(program: CompiledProgram, client: Client, server: Server) -> bool:
    answer = client.decrypt(server.run(client.encrypt(images())))
    return bool(np.max(np.abs(answer - program.simulate(images()))) < ERROR)


def test_servers_and_clients_that_come_and_go_leave_nothing_behind() -> None:
    program = small_program()
    frame = Client(program).generate_keys().to_bytes()
    gc.collect()
    before, used = held(), []
    for turn in range(11):
        client = Client(program)
        live = client.generate_keys()
        server = Server(program, EvaluationKeys.from_bytes(program, frame))
        assert len(held() - before) == 2
        if turn == 0:
            assert right(program, client, Server(program, live))
        if turn % 2:  # by the end of what holds them, or told to
            with server, client, live:
                pass
            assert held() == before
        del server, client, live
        assert held() == before
        return_freed()
        used.append(current_rss_bytes())
    grown = max(used[-3:]) - max(used[2:5])
    assert grown < 3 * len(frame), (grown, len(frame))  # of a dozen sets of keys that were made in between


def session(server: Server) -> OpenFHEServer:
    found = server._session
    assert isinstance(found, OpenFHEServer)
    return found


def test_keys_that_others_hold_stay() -> None:
    program = small_program()
    client = Client(program)
    keys = client.generate_keys()
    first, second = Server(program, keys), Server(program, keys)
    frame = keys.to_bytes()
    first.close()
    keys.close()
    assert right(program, client, second)
    second.close()
    received = EvaluationKeys.from_bytes(program, frame)
    first, second = Server(program, received), Server(program, received)
    assert session(first).keys is session(second).keys
    first.close()
    assert right(program, client, second)
    second.close()
    assert not received.installed
    assert right(program, client, Server(program, received))  # read once more
    # Two sets under one tag, as a secret key has that is used twice.
    secret = new_secret_key(TINY)
    one, other = make_keys(TINY, secret, (1,), False), make_keys(TINY, secret, (1, 2), False)
    assert one.tag == other.tag in held()
    del one
    assert other.tag in held()


def test_what_is_closed_says_so() -> None:
    program = small_program()
    with Client(program) as client:
        with client.generate_keys() as keys, Server(program, keys) as server:
            image = client.encrypt(images())
            result = server.run(image)
        uses: list[Callable[[], object]] = [lambda: server.run(image), server.prepare]
        for use in uses:
            with pytest.raises(ClosedError, match=r"server is closed\. Make another"):
                use()
        uses = [lambda: Server(program, keys), keys.to_bytes, keys.install]
        for use in uses:
            with pytest.raises(ClosedError, match="keys are closed"):
                use()
        server.close()
        keys.close()
        assert np.max(np.abs(client.decrypt(result) - program.simulate(images()))) < ERROR
        assert server._cache.bytes == 0 and server.encode_seconds > 0
    uses = [lambda: client.encrypt(images()), lambda: client.decrypt(result), client.generate_keys]
    for use in uses:
        with pytest.raises(ClosedError, match=r"client is closed\. Make another"):
            use()


def test_a_run_ends_before_its_server_is_closed() -> None:
    program = small_program()
    client = Client(program)
    server = Server(program, client.generate_keys())
    closing = threading.Thread(target=server.close)
    seen: list[str] = []

    def progress(done: Progress) -> None:
        if done.done == 2:
            with pytest.raises(BackendError, match="own run"):
                server.close()
            with pytest.raises(BackendError, match="own run"):
                server.run(client.encrypt(images()))
            closing.start()
        seen.append(done.node)

    answer = client.decrypt(server.run(client.encrypt(images()), progress))
    assert np.max(np.abs(answer - program.simulate(images()))) < ERROR
    closing.join(60)
    assert len(seen) == len(program.graph.nodes)
    with pytest.raises(ClosedError):
        server.run(client.encrypt(images()))


def test_what_bootstraps_take_goes_with_the_last_server() -> None:
    program = deep_program(digits=4)  # whose chain no other test has: their servers may still be there
    parameters, client = program.parameters, Client(program)
    keys = client.generate_keys()
    evaluator = OpenFHEEvaluator(wire(parameters).context, parameters, keys.steps)
    setup, held = parameters.bootstrapping, client._held()
    assert setup is not None and isinstance(held, OpenFHEClient)
    slots, secret = np.linspace(-1, 1, parameters.slots, dtype=np.float64), held.secret_key

    def bootstraps() -> bool:
        low = evaluator.encrypt(secret, slots, setup.input_level)
        return bool(np.max(np.abs(evaluator.decrypt(secret, evaluator.bootstrap(low)) - slots)) < 0.01)

    first, second = Server(program, keys), Server(program, keys)
    first.close()
    assert bootstraps()
    second.close()
    assert not context._set_up_of(parameters).owners
    with pytest.raises(RuntimeError):
        bootstraps()
    server = Server(program, keys)
    assert bootstraps()
    server.close()


def test_paged_keys_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program()
    client = Client(program)
    frame = client.generate_keys().to_bytes()
    monkeypatch.setattr(type(OPENFHE), "library_bytes", lambda *_: 0.0)
    for name, value in (("current_rss_bytes", lambda: 0), ("available_bytes", lambda: 1e12)):
        monkeypatch.setattr(server_module, name, value)
    gc.collect()
    before, estimate = held(), program.estimate()
    received = EvaluationKeys.from_bytes(program, frame)
    away = len(set(received.steps) - pinned_steps(program)) - 2 - LOADING_KEYS
    needed = estimate.ciphertext_bytes + estimate.setup_bytes + received.payload_bytes
    room = needed - (away - 0.5) * one_key_bytes(program)
    server = Server(program, received, max_memory=(1 + UNUSED_SHARE) * room)
    assert server.pages is not None and server.pages.capacity == 2
    received.close()
    assert right(program, client, server)
    assert len(held() - before) == 3  # and that of relinearisation
    server.close()
    assert held() == before


def test_threads_of_a_server_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    program = small_program()
    client = Client(program)
    keys = client.generate_keys()
    alive = set(threading.enumerate())
    server = Server(program, keys)
    assert right(program, client, server)
    begun = set(threading.enumerate()) - alive
    assert begun
    server.close()
    for thread in begun:
        thread.join(10)
        assert not thread.is_alive()


# When keys go --------------------------------------------------------------------------------------------------------


def one_key(tag: str) -> None:
    secret = new_secret_key(TINY)
    fhe, ready = load(), wire(TINY)
    made = make_keys(TINY, secret, (1,), False)
    put_all([fhe.DeserializeEvalKeyMapString(fhe.Serialize(made._maps[0][1], fhe.BINARY), fhe.BINARY)], tag)
    assert ready.parameters == TINY


def test_nothing_goes_while_keys_are_in_use() -> None:
    tag = new_tag()
    owner = Held(tag)
    one_key(tag)
    with KEY_MAPS.using():
        del owner
        assert tag in held()
        with KEY_MAPS.resting():  # between two nodes
            assert tag not in held()


def test_who_rests_gets_back_what_it_had() -> None:
    """Users and one who changes take turns, each as often as it rests."""
    order: list[str] = []
    begun = threading.Event()

    def use() -> None:
        with KEY_MAPS.using(), KEY_MAPS.using():
            begun.set()
            for _ in range(3):
                assert KEY_MAPS._owner is None
                order.append("used")
                turns = order.count("changed")
                while order.count("changed") == turns < 3:
                    with KEY_MAPS.resting():
                        time.sleep(0.001)

    with KEY_MAPS.changing(), KEY_MAPS.using(), KEY_MAPS.changing():
        using = threading.Thread(target=use)
        using.start()
        assert not begun.wait(0.05)
        for _ in range(3):
            assert KEY_MAPS._owner == threading.get_ident() and KEY_MAPS._depth == 2
            order.append("changed")
            with KEY_MAPS.resting():
                assert begun.wait(60)
    using.join(60)
    assert sorted(order) == ["changed"] * 3 + ["used"] * 3
    assert order[:2] == ["changed", "used"]
    assert KEY_MAPS._owner is None and not KEY_MAPS._users and not KEY_MAPS._waiting


def test_what_the_garbage_collector_finds_goes_with_the_next_use() -> None:
    """It may run at any place, and in a thread that has the lock."""
    tag = new_tag()
    one_key(tag)

    class Ring:
        def __init__(self) -> None:
            self.owner, self.itself = Held(tag), self

    gc.disable()
    try:
        gone = weakref.ref(Ring())
        with KEY_MAPS._changed:
            gc.collect()
            assert gone() is None
        assert tag in held()
        with KEY_MAPS.using():
            assert tag in held()
        assert tag not in held()
    finally:
        gc.enable()


def test_two_that_use_keys_and_want_to_change_them_do_not_wait_for_each_other() -> None:
    both, changed = threading.Barrier(2), []

    def work() -> None:
        with KEY_MAPS.using():
            both.wait(60)
            with KEY_MAPS.changing(), KEY_MAPS.changing():
                changed.append(threading.get_ident())
            with KEY_MAPS.using():
                pass

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(changed)) == 2
    assert KEY_MAPS._owner is None and not KEY_MAPS._users and not KEY_MAPS._waiting


def test_the_lock_is_free_after_errors() -> None:
    for lock in (KEY_MAPS.using, KEY_MAPS.changing):
        for other in (KEY_MAPS.using, KEY_MAPS.changing, KEY_MAPS.resting):
            with pytest.raises(KeyError), lock(), lock(), other():
                raise KeyError
        assert KEY_MAPS._owner is None and not KEY_MAPS._users and not KEY_MAPS._waiting

    def fail() -> None:
        raise RuntimeError("no room")

    with pytest.warns(UserWarning, match="delete keys: no room"):
        KEY_MAPS.do_later(fail)
    assert KEY_MAPS._owner is None and not KEY_MAPS._users
