"""The client's side of a server: `RemoteServer` has the interface of `olac.Server`, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import secrets
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from olac.backends.session import find_engine
from olac.ckks.key_list import KeyList
from olac.errors import ArtifactError, InputError, MissingKeyError, OlacError, plain
from olac.program.client_program import ClientProgram
from olac.program.program import AnyProgram
from olac.runtime import EncryptedInput, EncryptedResult, EvaluationKeys, KeyFolder
from olac.runtime.key_parts import save_parts
from olac.serving.logs import event
from olac.serving.names import RULES, is_name
from olac.serving.quotas import SETS
from olac.system.files import check_private

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Self

log = logging.getLogger(__name__)

CHUNK = 1 << 20
PARALLEL = 4
"""Parts of keys that are sent at once."""
PATIENCE_SECONDS = 120.0
"""How long an unreachable or busy server is tried again."""
WAIT_SECONDS = 30.0
ANSWER_SECONDS = 30.0
LONGEST_PAUSE = 30.0
MOST_TEXT = 500
AGAIN = (408, 429, 502, 503, 504)
"""Answers after which the same request may succeed."""
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class RemoteError(OlacError):
    """A server can't be reached, or refuses a request.

    Attributes:
        status: of its answer; 0 if there was none.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class RemoteJob:
    """A job as its server describes it.

    Attributes:
        id: its name.
        state: queued, running, done, failed or cancelled.
        done, total: layers so far and in all; 0 of 0 until keys are loaded.
        eta_seconds: predicted to the end of the run; None if it does not run.
        error: why it failed.
    """

    id: str
    state: str
    done: int = 0
    total: int = 0
    eta_seconds: float | None = None
    error: str = ""


class RemoteServer:
    """A program on a server that `olac serve` runs, with the interface of `Server`.

    One object may be used by several threads.

    Args:
        url: of the server, such as https://olac.example.org.
        program: the ID of the program there.
        client_program: what clients need of the program, or the program itself, if it is known from elsewhere: the
            server then has to have the same one. None to take what the server says.
        token: of this client; None for a server on this machine that takes none.
        patience: seconds for which a server that is away or busy is tried again.
        verify: for https: a file with the certificates to trust, a context of `ssl`, or False to check nothing, which
            lets anybody between read the token.

    Attributes:
        program: what clients need of it: `Client(server.program)` makes keys and encrypts.

    Raises:
        RemoteError: the server can't be reached, has no such program, or refuses the token.
        ArtifactError: the program there is another one than `client_program`.
        InputError: the address or the ID can't be one.
        OlacError: httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        program: str,
        *,
        client_program: AnyProgram | None = None,
        token: str | None = None,
        patience: float = PATIENCE_SECONDS,
        verify: bool | str | ssl.SSLContext = True,
    ) -> None:
        if not is_name("program", program):
            raise InputError(f"{plain(program)[:60]!r} is no ID of a program: {RULES['program']}")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{plain(url)[:80]!r} is no address of a server, such as https://olac.example.org")
        if token is not None and parts.scheme == "http" and parts.hostname not in LOCAL_NAMES:
            event(log, "the token travels in the clear", level=logging.WARNING, host=parts.hostname)
        self._httpx = _httpx()
        self._id, self._patience, self._url = program, patience, url.rstrip("/")
        self._http = self._httpx.Client(
            base_url=self._url,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=self._httpx.Timeout(ANSWER_SECONDS, read=ANSWER_SECONDS + WAIT_SECONDS),
            verify=ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify,
            follow_redirects=False,
            limits=self._httpx.Limits(max_connections=2 * PARALLEL),
        )
        found = ClientProgram.from_bytes(self._ask("GET", f"/v1/programs/{program}/client").content)
        if client_program is not None and client_program.fingerprint != found.fingerprint:
            raise ArtifactError(
                f"{plain(self._url)}: its program {program} is another one than yours ({found.fingerprint[:16]}..., "
                f"expected {client_program.fingerprint[:16]}...). Ask for its ID there, or take its description."
            )
        self.program = found if client_program is None else client_program.client()

    def close(self) -> None:
        """Give the connections back. Keys and jobs stay on the server."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Keys ------------------------------------------------------------------------------------------------------------

    def upload_keys(
        self, keys: EvaluationKeys | KeyFolder | str | Path, progress: Callable[[int, int], None] | None = None
    ) -> tuple[str, ...]:
        """Send the parts of evaluation keys that the program needs and the server does not have.

        A broken connection costs the parts that were on their way: call it again, and the others stay.

        Args:
            keys: or the folder of their parts (`save_parts`, `olac keygen --parts`). Keys that are given themselves are
                written to a temporary folder first.
            progress: called as progress(parts done, parts in all).

        Returns:
            the names of the parts that were sent.

        Raises:
            RemoteError: the server can't be reached or refuses a part.
            MissingKeyError: the keys don't hold what the program needs.
            ArtifactError: a part is damaged.
        """
        if isinstance(keys, EvaluationKeys):
            with tempfile.TemporaryDirectory(prefix="olac-keys-") as place:
                return self._send_parts(save_parts(keys, place), progress)
        return self._send_parts(keys if isinstance(keys, KeyFolder) else KeyFolder(self.program, keys), progress)

    def _send_parts(self, folder: KeyFolder, progress: Callable[[int, int], None] | None) -> tuple[str, ...]:
        lacking = folder.missing(self.program)
        if lacking:
            raise MissingKeyError(
                f"the keys lack {', '.join(lacking[:8])}{' and others' if len(lacking) > 8 else ''}, which the program "
                "needs. Make them with Client.more_keys."
            )
        needed = self.program.keys_for(folder.engine.model)
        names = folder.listed.within(needed.steps, needed.relinearise is not None, needed.bootstraps).names
        sent = []
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="olac-upload") as pool:
            for done, (name, new) in enumerate(pool.map(lambda name: (name, self._send_part(folder, name)), names), 1):
                if new:
                    sent.append(name)
                if progress is not None:
                    progress(done, len(names))
        return tuple(sent)

    def _send_part(self, folder: KeyFolder, name: str) -> bool:
        """Send a part unless the server has it; whether it was sent."""
        place = f"/v1/keys/{folder.identity}/{name}"
        if self._ask("HEAD", place, right=(200, 404)).status_code == 200:
            return False
        path = folder.path(name)
        digest, size = hashlib.sha256(), path.stat().st_size
        for piece in _pieces(path):
            digest.update(piece)
        headers = {"Content-Digest": _content_digest(digest.digest()), "Content-Length": str(size)}
        options = {"program": self._id, "engine": folder.engine.key_files}
        self._ask("PUT", place, params=options, headers=headers, body=lambda: _pieces(path))
        return True

    def missing(self, identity: str, engine: str | None = None) -> tuple[str, ...]:
        """The names of the parts of a key pair that the program needs and the server does not have.

        Args:
            identity: the name of the key pair (`Client.identity`).
            engine: that the keys are for; None for the one that the program was planned for.

        Raises:
            RemoteError: the server can't be reached.
        """
        answer = self._ask("GET", f"/v1/keys/{_name('identity', identity)}", right=(200, 404))
        names = () if answer.status_code == 404 else tuple(_json(answer))
        held = KeyList()
        for name in names:
            if is_name("part", name):
                held = held.with_more(KeyList.named(name))
        return self.program.keys_for(find_engine(engine or self.program.engine).model).lacking(held).names

    def delete_keys(self, identity: str) -> None:
        """Delete all keys of a pair on the server.

        Args:
            identity: the name of the key pair (`Client.identity`).

        Raises:
            RemoteError: jobs need them, or the server can't be reached.
        """
        self._ask("DELETE", f"/v1/keys/{_name('identity', identity)}", right=(204, 404))

    # Jobs ------------------------------------------------------------------------------------------------------------

    def run(self, encrypted: EncryptedInput, progress: Callable[[RemoteJob], None] | None = None) -> EncryptedResult:
        """Run the program on a batch, as `Server.run`: `submit`, `result`, and the job is forgotten.

        Args:
            encrypted: the batch, from the client whose keys the server has.
            progress: called with the job's state every second, and after its end.

        Raises:
            MissingKeyError: the server lacks keys: `upload_keys`.
            RemoteError: the server can't be reached, or the job failed.
            ArtifactError: the result is damaged or another one.
        """
        job = self.submit(encrypted)
        try:
            return self.result(job, encrypted, progress)
        except BaseException:
            self._give_up(job)
            raise

    def submit(self, encrypted: EncryptedInput) -> str:
        """Queue a batch; returns the job's ID, with which any later process can take the result.

        Args:
            encrypted: the batch, from the client whose keys the server has.

        Raises:
            MissingKeyError, RemoteError: as `run`.
        """
        EncryptedInput.check_kind(encrypted)
        if encrypted.program.fingerprint != self.program.fingerprint:
            raise ArtifactError(f"{encrypted.name} is of another program. Encrypt it for the program of this server.")
        data = encrypted.to_bytes()
        headers = {
            "Content-Digest": _content_digest(hashlib.sha256(data).digest()),
            "Idempotency-Key": secrets.token_hex(16),  # an answer that got lost makes no second job
        }
        answer = self._ask(
            "POST",
            f"/v1/programs/{self._id}/jobs",
            right=(202, 409),
            params={"keys": encrypted.identity},
            headers=headers,
            body=lambda: data,
        )
        if answer.status_code == 409:
            missing = _json(answer).get("missing")
            some = ", ".join(plain(one) for one in missing[:8]) if isinstance(missing, list) else "some"
            raise MissingKeyError(
                f"the server lacks keys that the program needs ({some}). Send them: upload_keys(keys)."
            )
        return _name("job", _json(answer).get("id"))

    def state(self, job: str, wait: float = 0.0) -> RemoteJob:
        """How a job is; waits at most so many seconds for its end.

        Args:
            job: the ID that `submit` gave.
            wait: seconds; 0 for an answer at once.

        Raises:
            RemoteError: the server can't be reached, or has no such job.
        """
        answer = self._ask("GET", f"/v1/jobs/{_name('job', job)}", params={"wait": str(wait)})
        found = _json(answer)
        eta = found.get("eta_seconds")
        return RemoteJob(
            job,
            str(found.get("state")),
            int(found.get("layer", 0)),
            int(found.get("layers", 0)),
            None if eta is None else float(eta),
            plain(found.get("error", ""))[:MOST_TEXT],
        )

    def result(
        self,
        job: str,
        encrypted: EncryptedInput | None = None,
        progress: Callable[[RemoteJob], None] | None = None,
        *,
        forget: bool = True,
    ) -> EncryptedResult:
        """Wait for a job and take its result.

        Args:
            job: the ID that `submit` gave.
            encrypted: the input that it has to be the result of.
            progress: called with the job's state every second, and after its end.
            forget: delete the job and its result on the server afterwards.

        Raises:
            RemoteError: the job failed or was cancelled, or the server can't be reached.
            ArtifactError: the result is damaged or another one.
        """
        wait = WAIT_SECONDS if progress is None else 1.0
        while True:
            at = self.state(job, wait)
            if progress is not None:
                progress(at)
            if at.state not in ("queued", "running"):
                break
        if at.state != "done":
            raise RemoteError(f"the job {job} is {at.state}" + (f": {at.error}" if at.error else ""))
        sets = SETS if encrypted is None else encrypted.sets
        result = EncryptedResult.from_bytes(self.program, self._download(f"/v1/jobs/{job}/result", sets))
        if encrypted is not None:
            result.check_input(encrypted)
        if forget:
            self._ask("DELETE", f"/v1/jobs/{job}", right=(200, 404))
        return result

    def cancel(self, job: str) -> None:
        """A job is not wanted any more; one that has ended is forgotten.

        Args:
            job: the ID that `submit` gave.

        Raises:
            RemoteError: the server can't be reached.
        """
        self._ask("DELETE", f"/v1/jobs/{_name('job', job)}", right=(200, 404))

    def _give_up(self, job: str) -> None:
        """Cancel a job, and once more to forget it; nothing if the server is away, as another error is on its way."""
        for _ in range(2):
            try:
                self._once("DELETE", f"/v1/jobs/{job}", {}, {}, None)
            except self._httpx.HTTPError:
                return

    # Requests --------------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        place: str,
        *,
        right: tuple[int, ...] = (),
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
    ) -> httpx.Response:
        """An answer with one of the statuses in `right`, or any from 200 to 299; tried again while that may help."""
        end, pause = time.monotonic() + self._patience, 0.2
        while True:
            answer, problem = None, ""
            try:
                answer = self._once(method, place, params or {}, headers or {}, body)
            except self._httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if answer is not None:
                if answer.status_code in right or (not right and answer.is_success):
                    return answer
                if answer.status_code not in AGAIN:
                    raise RemoteError(self._said(answer), answer.status_code)
                problem = self._said(answer)
                pause = max(pause, _retry_after(answer))
            if time.monotonic() + pause > end:
                status = 0 if answer is None else answer.status_code
                advice = "" if status else ". Check the address, and that `olac serve` runs there"
                raise RemoteError(
                    f"{plain(self._url)}: tried for {self._patience:.0f} s. {plain(problem)}{advice}", status
                )
            time.sleep(pause * (1 + 0.2 * secrets.randbelow(1000) / 1000))  # clients don't all come back at once
            pause = min(2 * pause, LONGEST_PAUSE)

    def _once(
        self,
        method: str,
        place: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: Callable[[], Any] | None,
    ) -> httpx.Response:
        answer: httpx.Response = self._http.request(
            method, place, params=dict(params), headers=dict(headers), content=None if body is None else body()
        )
        return answer

    def _download(self, place: str, sets: int) -> bytes:
        """A result of at most so many sets of ciphertexts, of which no more is read than it can have."""
        port = self.program.output
        one = 2 * (port.state.level + 1) * self.program.parameters.ring_dimension * 8
        most = sets * port.layout.ciphertexts * one + (1 << 13)
        end, pause = time.monotonic() + self._patience, 0.2
        while True:
            try:
                with self._http.stream("GET", place) as answer:
                    if not answer.is_success:
                        answer.read()
                        raise RemoteError(self._said(answer), answer.status_code)
                    data = bytearray()
                    for piece in answer.iter_bytes(CHUNK):
                        data += piece
                        if len(data) > most:
                            raise ArtifactError(f"{plain(self._url)}: sent more than the {most} bytes of a result")
                    return bytes(data)
            except self._httpx.TransportError as error:
                if time.monotonic() + pause > end:
                    raise RemoteError(f"{plain(self._url)}: {type(error).__name__}: {error}") from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _said(self, answer: httpx.Response) -> str:
        """What the server says of a request that it refuses."""
        try:
            detail = plain(_json(answer).get("detail", ""))[:MOST_TEXT]
        except RemoteError:
            detail = ""
        return f"{plain(self._url)} answers {answer.status_code}" + (f": {detail}" if detail else "")


def _httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise OlacError(f"a remote server needs httpx ({error}): pip install 'olac[serve]'") from error
    return httpx


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RemoteError("the server's answer is not olac's. Check the address.", answer.status_code)
    return found


def _name(kind: str, text: object) -> str:
    if not isinstance(text, str) or not is_name(kind, text):
        raise InputError(f"{plain(text)[:60]!r} is no name of a {kind}: {RULES[kind]}")
    return text


def _retry_after(answer: httpx.Response) -> float:
    given = answer.headers.get("retry-after", "")
    return min(float(given), LONGEST_PAUSE) if given.isdecimal() else 0.0


def _content_digest(sha256: bytes) -> str:
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK):
            yield piece


def read_token(path: str | Path | None) -> str | None:
    """The token in a file, or in the variable OLAC_TOKEN if no file is given; None if there is none.

    Raises:
        ArtifactError: the file is missing, empty, or others may read it.
    """
    if path is None:
        return os.environ.get("OLAC_TOKEN") or None
    try:
        with Path(path).open("rb") as stream:
            check_private(stream, path, "token", "ask for a new one")
            token = stream.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise ArtifactError(f"{plain(path)}: can't be read: {error.strerror or error}") from error
    if not token or len(token.split()) != 1:
        raise ArtifactError(f"{plain(path)}: holds no token. It has to have one line, the token.")
    return token


__all__ = ["RemoteError", "RemoteJob", "RemoteServer", "read_token"]
