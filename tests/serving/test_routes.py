"""What each route takes, refuses and tells, over a server in this process."""

from __future__ import annotations

import base64
import errno
import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from olac.program.client_program import ClientProgram
from olac.runtime import EncryptedResult
from olac.serving.quotas import SETS, Quotas
from olac.serving.service import Service
from olac.serving.uploads import content_digest, receive
from tests.runtime.small_program import small_program
from tests.serving.served import (
    Side,
    bearer,
    data_folder,
    new_side,
    program,
    right,
    send_job,
    send_keys,
    served,
    service_of,
    wait_for,
)

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


class Place:
    """A server with quotas that tests reach, and two clients."""

    def __init__(self, folder: Path, service: Service, http: httpx.Client) -> None:
        self.service, self.http = service, http
        self.alice, self.bob = new_side(folder / "alice"), new_side(folder / "bob")

    def url(self, side: Side, part: str = "relinearise-5") -> str:
        return f"/v1/keys/{side.parts.identity}/{part}"

    def put(self, side: Side, part: str, data: bytes, owner: str = "alice", **headers: str) -> httpx.Response:
        place, options = self.url(side, part), {"program": "small"}
        return self.http.put(place, params=options, content=data, headers={**bearer(owner), **headers})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("routes")
    service = service_of(data_folder(folder), quotas=Quotas(jobs=3, key_pairs=2))
    with served(service) as http:
        yield Place(folder, service, http)


@pytest.fixture(autouse=True)
def nothing_left(place: Place) -> Iterator[None]:
    """No job waits or runs, no file is on its way, and nothing is outside of the folder."""
    before = set(place.service.store.data.parent.iterdir())
    yield
    wait_for(lambda: not place.service.store.jobs("state IN ('queued', 'running')"))
    assert list((place.service.store.data / "uploads").iterdir()) == []
    assert set(place.service.store.data.parent.iterdir()) == before


def test_a_run(place: Place) -> None:
    http, alice = place.http, place.alice
    described = http.get("/v1/programs/small/client", headers=bearer("alice"))
    assert ClientProgram.from_bytes(described.content).fingerprint == program().fingerprint
    send_keys(http, alice, "alice")
    queued = send_job(http, alice, "alice", seed=5)
    assert queued.status_code == 202 and queued.headers["location"] == f"/v1/jobs/{queued.json()['id']}"
    done = http.get(queued.headers["location"], params={"wait": 30}, headers=bearer("alice")).json()
    assert done["state"] == "done", done
    data = http.get(f"{queued.headers['location']}/result", headers=bearer("alice")).content
    result = EncryptedResult.from_bytes(program(), data)
    assert right(alice, alice.client.decrypt(result), 5)
    assert [path.name for path in (place.service.store.data / "jobs" / done["id"]).iterdir()] == ["result.olac"]
    assert http.delete(queued.headers["location"], headers=bearer("alice")).json()["state"] == "done"
    assert http.get(queued.headers["location"], headers=bearer("alice")).status_code == 404
    assert not (place.service.store.data / "jobs" / done["id"]).exists()


def test_programs(place: Place) -> None:
    (one,) = place.http.get("/v1/programs", headers=bearer("bob")).json()
    assert one["id"] == "small" and one["fingerprint"] == program().fingerprint and one["input_shape"] == [2, 4, 4]
    assert place.http.get("/v1/programs/other/client", headers=bearer("bob")).status_code == 404


def test_without_a_token_nothing_is_told(place: Place) -> None:
    routes = [
        ("GET", "/v1/programs"),
        ("GET", "/v1/programs/small/client"),
        ("GET", place.url(place.alice).rpartition("/")[0]),
        ("HEAD", place.url(place.alice)),
        ("PUT", place.url(place.alice) + "?program=small"),
        ("DELETE", place.url(place.alice)),
        ("POST", f"/v1/programs/small/jobs?keys={place.alice.parts.identity}"),
        ("GET", f"/v1/jobs/{'0' * 32}"),
        ("GET", f"/v1/jobs/{'0' * 32}/result"),
        ("DELETE", f"/v1/jobs/{'0' * 32}"),
        ("GET", "/"),
        ("GET", "/metrics"),
        ("GET", "/v1/load"),
    ]
    told = place.http.get("/openapi.json").json()["paths"]
    assert {place_ for _, place_ in routes if "{" in place_} == set()
    assert len(routes) == sum(len(methods) for methods in told.values()) - 1 - 1 + 1  # /healthz; DELETE of a pair; /
    for method, url in routes:
        for headers in ({}, {"Authorization": "Bearer " + "x" * 30}, {"Authorization": "Basic eDp4"}):
            assert place.http.request(method, url, headers=headers).status_code == 401, (method, url)
    assert place.http.get("/healthz").json() == {"status": "ok"}


def test_clients_do_not_see_each_other(place: Place) -> None:
    send_keys(place.http, place.alice, "alice")
    job = send_job(place.http, place.alice, "alice").headers["location"]
    for method, url in (
        ("HEAD", place.url(place.alice)),
        ("GET", place.url(place.alice).rpartition("/")[0]),
        ("DELETE", place.url(place.alice)),
        ("GET", job),
        ("GET", f"{job}/result"),
        ("DELETE", job),
        ("GET", "/"),
        ("GET", "/metrics"),
        ("GET", "/v1/load"),
    ):
        assert place.http.request(method, url, headers=bearer("bob")).status_code == 404, (method, url)
    assert place.http.request("HEAD", place.url(place.alice), headers=bearer("alice")).status_code == 200
    # An input under alice's keys, sent by bob, finds no keys.
    assert send_job(place.http, place.alice, "bob").status_code == 409
    # Bob's keys under alice's name are beside hers.
    name = place.alice.parts.names[0]
    before = place.alice.parts.path(name).read_bytes()
    assert place.put(place.alice, name, before, "bob").status_code == 201
    assert place.http.delete(place.url(place.alice, name), headers=bearer("bob")).status_code == 204
    assert place.http.request("HEAD", place.url(place.alice, name), headers=bearer("alice")).status_code == 200
    assert place.http.get(job, params={"wait": 30}, headers=bearer("alice")).json()["state"] == "done"


def test_pages_of_the_operator(place: Place) -> None:
    text = place.http.get("/metrics", headers=bearer("operator")).text
    assert 'olac_jobs{state="queued"}' in text and "olac_memory_limit_bytes 1e+09" in text
    assert 'olac_http_requests_total{method="GET",route="/metrics",status="401"}' in text
    basic = {
        "Authorization": "Basic "
        + base64.b64encode(b"any:" + bearer("operator")["Authorization"][7:].encode()).decode()
    }
    page = place.http.get("/", headers=basic)
    assert (
        page.status_code == 200 and 'name="viewport"' in page.text and "http" not in page.text.replace("http-equiv", "")
    )
    nonce = page.headers["content-security-policy"].partition("script-src 'nonce-")[2].partition("'")[0]
    assert len(nonce) > 20 and page.text.count(f'nonce="{nonce}"') == 2
    # A password counts for pages alone: a browser would add it to what other pages make it send.
    assert place.http.get("/v1/programs", headers=basic).status_code == 401
    load = place.http.get("/v1/load", headers=basic).json()
    assert load["memory"]["limit"] == 1e9 and load["programs"][0]["id"] == "small"


@pytest.mark.parametrize(
    "url",
    [
        "/v1/keys/{identity}/..%2f..%2fx",
        "/v1/keys/{identity}/rotation-1-5.key",
        "/v1/keys/{identity}/rotation-01-5",
        "/v1/keys/..%2f..%2fx/relinearise-5",
        "/v1/keys/ABCDEF00112233445566778899aabbcc/relinearise-5",
        "/v1/keys/{identity}%00/relinearise-5",
        "/v1/keys/{identity}%0a/relinearise-5",
    ],
)
def test_names_of_keys_stay_in_their_folder(place: Place, url: str) -> None:
    full = url.format(identity=place.alice.parts.identity)
    for method in ("HEAD", "PUT", "DELETE"):
        answer = place.http.request(method, full, params={"program": "small"}, headers=bearer("alice"))
        assert answer.status_code == 404, (method, answer.text)


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2fsmall", "small%00", ".small", "SMALL", "a" * 65])
def test_names_of_programs_and_jobs_stay_in_their_folder(place: Place, name: str) -> None:
    for method, url in (
        ("GET", f"/v1/programs/{name}/client"),
        ("POST", f"/v1/programs/{name}/jobs?keys={place.alice.parts.identity}"),
        ("GET", f"/v1/jobs/{name}/result"),
        ("DELETE", f"/v1/jobs/{name}"),
    ):
        assert place.http.request(method, url, headers=bearer("alice")).status_code == 404


def test_a_key_is_checked_before_it_takes_its_name(place: Place) -> None:
    name, other = place.alice.parts.names[:2]
    data = place.alice.parts.path(name).read_bytes()
    place.http.delete(place.url(place.alice, name), headers=bearer("alice"))
    wrong = content_digest(hashlib.sha256(b"other").digest())
    digest = content_digest(hashlib.sha256(data).digest())
    changed = data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]
    for status, what, part, body, headers in (
        (422, "another digest", name, data, {"Content-Digest": wrong}),
        (400, "no digest", name, data, {"Content-Digest": "sha-256=:AAAA:"}),
        (422, "a changed byte", name, changed, {}),
        (422, "the end missing", name, data[:-1], {}),
        (422, "nothing", name, b"", {}),
        (422, "another key", other if other != name else "", data, {}),
        (422, "a key that the ring does not have", "rotation-999999-5", data, {}),
        (413, "more than a key has", name, data + bytes(1 << 14), {}),
    ):
        answer = place.put(place.alice, part, body, **headers)
        assert answer.status_code == status, (what, answer.text)
        assert str(place.service.store.data) not in answer.text and ".part" not in answer.text
    assert place.put(place.bob, name, data).status_code == 422  # of another pair than the address says
    assert place.http.request("HEAD", place.url(place.alice, name), headers=bearer("alice")).status_code == 404
    assert place.put(place.alice, name, data, **{"Content-Digest": digest}).status_code == 201
    there = place.http.request("HEAD", place.url(place.alice, name), headers=bearer("alice"))
    assert there.headers["repr-digest"] == digest and there.headers["x-part-bytes"] == str(len(data))


def test_a_body_without_a_length_has_the_same_limit(place: Place) -> None:
    name = place.alice.parts.names[0]
    endless = (bytes(1 << 16) for _ in range(1 << 12))
    answer = place.http.put(
        place.url(place.alice, name), params={"program": "small"}, content=endless, headers=bearer("alice")
    )
    assert answer.status_code == 413


def test_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    name = place.alice.parts.names[0]
    data = place.alice.parts.path(name).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("olac.serving.uploads.os.write", full)
        answer = place.put(place.alice, name, data)
    assert answer.status_code == 507 and "disk is full" in answer.text
    assert place.put(place.alice, name, data).status_code == 201


def test_a_body_that_stops_coming(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits so long for each piece, not for the whole."""
    monkeypatch.setattr("olac.serving.app.receive", lambda request, path, most: receive(request, path, most, 0.3))
    data = place.alice.parts.path(place.alice.parts.names[0]).read_bytes()

    def pieces(pause: float) -> Iterator[bytes]:
        for i in range(0, len(data), len(data) // 4 + 1):
            time.sleep(pause)
            yield data[i : i + len(data) // 4 + 1]

    def sent(pause: float) -> int:
        url, options = place.url(place.alice, place.alice.parts.names[0]), {"program": "small"}
        return place.http.put(url, params=options, content=pieces(pause), headers=bearer("alice")).status_code

    assert sent(0.1) == 201
    assert sent(0.8) == 408


def test_keys_of_one_pair_are_for_one_set_of_parameters(place: Place, tmp_path: Path) -> None:
    data_folder(tmp_path, small_program(lowering="multiplexed"), "deeper")
    (tmp_path / "data" / "programs" / "deeper").rename(place.service.store.data / "programs" / "deeper")
    send_keys(place.http, place.alice, "alice")
    answer = place.http.put(
        place.url(place.alice, "relinearise-6"), params={"program": "deeper"}, content=b"", headers=bearer("alice")
    )
    assert answer.status_code == 409 and "other parameters" in answer.text


def test_missing_keys_are_named(place: Place) -> None:
    send_keys(place.http, place.alice, "alice")
    name = place.alice.parts.names[-1]
    place.http.delete(place.url(place.alice, name), headers=bearer("alice"))
    answer = send_job(place.http, place.alice, "alice")
    assert answer.status_code == 409 and answer.json()["missing"] == [name]
    send_keys(place.http, place.alice, "alice")


def test_inputs_are_checked(place: Place) -> None:
    send_keys(place.http, place.alice, "alice")
    good = place.alice.input().to_bytes()

    def sent(body: bytes, keys: str = place.alice.parts.identity, **headers: str) -> httpx.Response:
        return place.http.post(
            "/v1/programs/small/jobs", params={"keys": keys}, content=body, headers={**bearer("alice"), **headers}
        )

    for status, body, headers in (
        (422, b"nothing", {}),
        (422, good[:-1], {}),
        (422, place.bob.input().to_bytes(), {}),
        (422, place.alice.parts.path(place.alice.parts.names[0]).read_bytes()[:1000], {}),
        (413, good + bytes(SETS * len(good)), {}),
        (422, good, {"Idempotency-Key": "../x"}),
    ):
        answer = sent(body, **headers)
        assert answer.status_code == status, answer.text
        assert "uploads" not in answer.text
    assert sent(good, "../x").status_code == 422
    # What only the words show is found by the worker, and the job fails with what it says.
    at = len(good) // 2
    job = sent(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]).headers["location"]
    failed = place.http.get(job, params={"wait": 30}, headers=bearer("alice")).json()
    assert failed["state"] == "failed" and "SHA-256" in failed["error"] and "/tmp" not in failed["error"]
    assert place.http.get(f"{job}/result", headers=bearer("alice")).status_code == 409


def test_too_many_jobs_and_cancelling(place: Place) -> None:
    send_keys(place.http, place.alice, "alice")
    pool = place.service.pool
    before, pool.settings = pool.settings, replace(pool.settings, parallel=0)  # nothing is begun
    try:
        jobs = [send_job(place.http, place.alice, "alice", i).headers["location"] for i in range(3)]
        refused = send_job(place.http, place.alice, "alice")
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        # Keys that jobs wait for can be neither deleted nor replaced.
        name = place.alice.parts.names[0]
        data = place.alice.parts.path(name).read_bytes()
        assert place.http.delete(place.url(place.alice, name), headers=bearer("alice")).status_code == 409
        assert place.put(place.alice, name, data).status_code == 409
        assert place.http.get(jobs[0], headers=bearer("alice")).json()["state"] == "queued"
        assert place.http.delete(jobs[0], headers=bearer("alice")).json()["state"] == "cancelled"
        assert place.http.get(jobs[0], headers=bearer("alice")).json()["state"] == "cancelled"
        assert send_job(place.http, place.alice, "alice", 7).status_code == 202
    finally:
        pool.settings = before
        pool.wake()
    assert place.http.get(jobs[2], params={"wait": 30}, headers=bearer("alice")).json()["state"] == "done"


def test_a_request_that_is_sent_twice_makes_one_job(place: Place) -> None:
    send_keys(place.http, place.alice, "alice")
    first, second = (send_job(place.http, place.alice, "alice", 3, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert first.status_code == second.status_code == 202 and first.json()["id"] == second.json()["id"]
    start = time.monotonic()
    done = place.http.get(f"/v1/jobs/{first.json()['id']}", params={"wait": 30}, headers=bearer("alice"))
    assert done.json()["state"] == "done" and time.monotonic() - start < 20


def test_too_many_key_pairs(place: Place, tmp_path: Path) -> None:
    sides = [new_side(tmp_path / str(i)) for i in range(3)]
    name = sides[0].parts.names[0]
    statuses = [place.put(side, name, side.parts.path(name).read_bytes(), "bob").status_code for side in sides]
    assert statuses == [201, 201, 507]
    for side in sides[:2]:
        place.http.delete(f"/v1/keys/{side.parts.identity}", headers=bearer("bob"))


def test_pages_of_others_reach_nothing(tmp_path: Path) -> None:
    service = service_of(data_folder(tmp_path), tokens=False)
    with served(service) as http:
        assert http.get("/v1/programs").status_code == 200
        assert http.get("/v1/programs", headers={"Host": "evil.example:8750"}).status_code == 403
        job = "/v1/jobs/" + "0" * 32
        assert http.delete(job).status_code == 404
        assert http.delete(job, headers={"Origin": "https://evil.example"}).status_code == 403
