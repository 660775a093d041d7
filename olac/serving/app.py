"""The routes. What they do is in the other modules; they check who asks, what for, and how large it is."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from olac.errors import ArtifactError, BackendError, OlacError
from olac.program.artifact import olac_version
from olac.runtime import KeyFolder
from olac.runtime.envelope import INPUT as INPUT_FRAME
from olac.runtime.envelope import open_frame, parameter_fingerprint
from olac.serving.logs import event
from olac.serving.names import is_name
from olac.serving.page import page
from olac.serving.programs import Published
from olac.serving.quotas import QuotaError
from olac.serving.service import Service
from olac.serving.store import RESULT, Job, PartRow
from olac.serving.uploads import Upload, UploadError, content_digest, discard, receive
from olac.system.files import Source

log = logging.getLogger(__name__)

SWEEP_SECONDS = 600.0
MOST_WAIT = 60.0
MOST_DISCARDED = 1 << 26
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

router = APIRouter()


# Who asks ------------------------------------------------------------------------------------------------------------


def _service(request: Request) -> Service:
    found = request.app.state.service
    assert isinstance(found, Service)
    return found


def _token(request: Request, basic: bool) -> str | None:
    """The token of a request: as `Authorization: Bearer`; for pages in a browser also as the password of `Basic`."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def owner_of(request: Request) -> str:
    """Whose token a request has; 401 without one that is known."""
    owner = _service(request).tokens.owner(_token(request, False))
    if owner is None:
        raise HTTPException(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
    return owner


def operator_of(request: Request) -> str:
    """The operator; 401 without a token, 404 for clients. Browsers may give the token as a password."""
    tokens = _service(request).tokens
    owner = tokens.owner(_token(request, True))
    if owner is None:
        header = {"WWW-Authenticate": 'Basic realm="olac: the operator\'s token is the password"'}
        raise HTTPException(401, "the operator's token is needed", header)
    if not tokens.is_operator(owner):
        raise _absent("page")
    return owner


Owner = Annotated[str, Depends(owner_of)]
Operator = Annotated[str, Depends(operator_of)]


def _absent(what: str) -> HTTPException:
    return HTTPException(404, f"there is no such {what}")


def _named(kind: str, text: str) -> str:
    """A name from a path; what can't be one is absent."""
    if not is_name(kind, text):
        raise _absent(kind)
    return text


def _program(service: Service, id_: str) -> Published:
    try:
        found = service.catalogue.find(_named("program", id_))
    except OlacError as error:
        log.exception("a program can't be read")
        raise HTTPException(500, "the program can't be read; the operator's log says why") from error
    if found is None:
        raise _absent("program")
    return found


def _said(service: Service, error: Exception) -> str:
    """An error for a client, without the folder of the server."""
    return str(error).replace(f"{service.store.data}/", "")


# Operators -----------------------------------------------------------------------------------------------------------


@router.get("/healthz", tags=["operator"])
def healthz(request: Request) -> dict[str, str]:
    """Whether the server works; without a token."""
    service = _service(request)
    if not (service.healthy and service.pool.alive):
        raise HTTPException(503, "not ready")
    return {"status": "ok"}


@router.get("/metrics", tags=["operator"])
def metrics(request: Request, _: Operator) -> Response:
    """Metrics in Prometheus' format; with the operator's token."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
def index(_: Operator) -> HTMLResponse:
    """A page with programs, jobs and load; with the operator's token."""
    html, policy = page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@router.get("/v1/load", tags=["operator"])
def load(request: Request, _: Operator) -> dict[str, Any]:
    """What the page shows: programs, workers, and the jobs that were asked for last; with the operator's token."""
    service = _service(request)
    pool, now = service.pool, time.time()
    jobs = service.store.jobs("state IN ('queued', 'running')") + service.store.latest(20)
    shown = []
    for job in list({job.id: job for job in jobs}.values())[:200]:
        at = pool.progress(job.id)
        shown.append(
            {
                "id": job.id,
                "owner": job.owner,
                "program": job.program,
                "state": job.state,
                "seconds": round((job.finished or now) - (job.started or job.created), 1),
                "done": at.done if at else 0,
                "total": at.total if at else 0,
                "layer": at.layer if at else "",
                "eta_seconds": at.eta_seconds if at else None,
                "error": job.error,
            }
        )
    return {
        "version": olac_version(),
        "memory": {"held": pool.held_bytes, "limit": pool.settings.memory},
        "counts": service.store.counts(),
        "programs": [_described(one) for one in service.catalogue.all()],
        "workers": [{**one.key_set._asdict(), "bytes": one.bytes, "job": one.job} for one in pool.load()],
        "jobs": shown,
    }


# Programs ------------------------------------------------------------------------------------------------------------


class ProgramInfo(BaseModel):
    """A program that is served."""

    id: str
    fingerprint: str
    engine: str
    images: int
    input_shape: list[int]
    output_shape: list[int]
    security: int
    seconds: float
    input_bytes: int
    result_bytes: int


def _described(one: Published) -> dict[str, Any]:
    client = one.client
    return {
        "id": one.id,
        "fingerprint": client.fingerprint,
        "engine": one.about.engine,
        "images": client.batch,
        "input_shape": list(client.input_shape),
        "output_shape": list(client.output_shape),
        "security": client.parameters.security,
        "seconds": round(one.about.seconds, 3),
        "input_bytes": one.input_bytes,
        "result_bytes": one.result_bytes,
    }


@router.get("/v1/programs", tags=["programs"], response_model=list[ProgramInfo])
def programs(request: Request, _: Owner) -> list[dict[str, Any]]:
    """The programs that are served."""
    return [_described(one) for one in _service(request).catalogue.all()]


@router.get("/v1/programs/{program}/client", tags=["programs"])
def client_file(program: str, request: Request, _: Owner) -> Response:
    """What clients need of a program (docs/format.md): parameters, keys, inputs and outputs; no weights."""
    return Response(_program(_service(request), program).client_file, media_type="application/json")


# Keys ----------------------------------------------------------------------------------------------------------------


class KeyPart(BaseModel):
    """A part of the keys that is there."""

    bytes: int
    sha256: str


@router.get("/v1/keys/{identity}", tags=["keys"])
def key_parts(identity: str, request: Request, owner: Owner) -> dict[str, KeyPart]:
    """The parts of a key pair that are there, by name."""
    parts = _service(request).store.parts(owner, _named("identity", identity))
    if not parts:
        raise _absent("key")
    return {name: KeyPart(bytes=one.bytes, sha256=one.sha256) for name, one in parts.items()}


@router.head("/v1/keys/{identity}/{part}", tags=["keys"])
def has_part(identity: str, part: str, request: Request, owner: Owner) -> Response:
    """200 if a part is there, with its SHA-256 as Repr-Digest; 404 if not."""
    row = _service(request).store.parts(owner, _named("identity", identity)).get(_named("part", part))
    if row is None:
        raise _absent("key")
    digest = content_digest(bytes.fromhex(row.sha256))
    return Response(headers={"Repr-Digest": digest, "X-Part-Bytes": str(row.bytes)})


@router.put(
    "/v1/keys/{identity}/{part}",
    tags=["keys"],
    status_code=201,
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
)
async def put_part(
    identity: str,
    part: str,
    request: Request,
    owner: Owner,
    program: Annotated[str, Query(description="ID of a program with the parameters that the key is for")],
    engine: Annotated[str | None, Query(description="that the key is for; by default the program's")] = None,
) -> KeyPart:
    """Send a part of the keys: a file of `olac keygen --parts`. With the header Content-Digest it is compared."""
    service = _service(request)
    _named("identity", identity), _named("part", part)
    published = await run_in_threadpool(_program, service, program)
    try:
        folder = KeyFolder(published.client, service.store.key_folder(owner, identity), identity, engine)
        most = folder.most_bytes(part)
    except (ArtifactError, BackendError) as error:
        raise HTTPException(422, _said(service, error)) from error
    row = PartRow(part, 0, "", folder.engine.key_files, parameter_fingerprint(folder.parameters))
    await run_in_threadpool(_check_fits, service, owner, identity, row)
    with _refused(), service.reservations.key(owner, identity, most):
        async with receive(request, service.store.new_upload(), most) as upload:
            return await run_in_threadpool(_keep_part, service, owner, identity, folder, row, upload)


def _check_fits(service: Service, owner: str, identity: str, new: PartRow) -> None:
    parts = service.store.parts(owner, identity)
    if new.part in parts and service.store.active(owner, identity):
        raise HTTPException(409, "the key is there, and jobs need it. Wait for them before it is replaced.")
    if any((one.engine, one.parameters) != (new.engine, new.parameters) for one in parts.values()):
        raise HTTPException(409, "the keys of this pair that are there are for other parameters or another engine")


def _keep_part(service: Service, owner: str, identity: str, folder: KeyFolder, row: PartRow, upload: Upload) -> KeyPart:
    try:
        folder.take(row.part, upload.path)
    except ArtifactError as error:
        raise HTTPException(422, _said(service, error)) from error
    kept = PartRow(row.part, upload.bytes, upload.sha256, row.engine, row.parameters)
    service.store.add_part(owner, identity, kept)
    service.pool.free(owner, identity)  # a worker that waits would go on with the keys that it has
    service.metrics.uploaded.labels("keys").inc(upload.bytes)
    return KeyPart(bytes=upload.bytes, sha256=upload.sha256)


@router.delete("/v1/keys/{identity}/{part}", tags=["keys"], status_code=204)
def delete_part(identity: str, part: str, request: Request, owner: Owner) -> None:
    """Delete a part, unless jobs need the keys."""
    _delete(_service(request), owner, _named("identity", identity), _named("part", part))


@router.delete("/v1/keys/{identity}", tags=["keys"], status_code=204)
def delete_keys(identity: str, request: Request, owner: Owner) -> None:
    """Delete all keys of a pair, unless jobs need them."""
    _delete(_service(request), owner, _named("identity", identity), None)


def _delete(service: Service, owner: str, identity: str, part: str | None) -> None:
    if service.store.active(owner, identity):
        raise HTTPException(409, "jobs need the keys. Wait for them, or cancel them.")
    if not service.store.remove_keys(owner, identity, part):
        raise _absent("key")
    service.pool.free(owner, identity)


# Jobs ----------------------------------------------------------------------------------------------------------------


class JobInfo(BaseModel):
    """A job.

    `layer` of `layers` were computed, 0 of 0 until keys are loaded; `eta_seconds` is predicted to the end of the run.
    """

    id: str
    state: str
    program: str
    keys: str
    created: float
    attempts: int
    layer: int = 0
    layers: int = 0
    eta_seconds: float | None = None
    error: str = ""


def _told(service: Service, job: Job) -> JobInfo:
    found = JobInfo(
        id=job.id,
        state=job.state,
        program=job.program,
        keys=job.identity,
        created=job.created,
        attempts=job.attempts,
        error=job.error,
    )
    at = service.pool.progress(job.id)
    if at is not None and job.state == "running":
        found.layer, found.layers, found.eta_seconds = at.done, at.total, at.eta_seconds
    return found


@router.post(
    "/v1/programs/{program}/jobs",
    tags=["jobs"],
    status_code=202,
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
    responses={409: {"description": "parts of the keys are missing"}, 429: {"description": "too many jobs"}},
)
async def post_job(
    program: str,
    request: Request,
    response: Response,
    owner: Owner,
    keys: Annotated[str, Query(description="identity of the key pair that the input is encrypted under")],
    idempotency_key: Annotated[str | None, Header()] = None,
) -> JobInfo:
    """Queue an encrypted input. A second request with the same Idempotency-Key gives the same job."""
    service = _service(request)
    published = await run_in_threadpool(_program, service, program)
    if not is_name("identity", keys):
        raise HTTPException(422, "keys is no identity of a key pair")
    if idempotency_key is not None and not is_name("request", idempotency_key):
        raise HTTPException(422, "Idempotency-Key has other characters than letters, digits, dashes and underscores")
    if idempotency_key is not None:
        before = await run_in_threadpool(service.store.job_of_request, owner, idempotency_key)
        if before is not None:
            await discard(request, MOST_DISCARDED)
            return _told(service, before)
    missing = await run_in_threadpool(_missing, service, owner, keys, published)
    if missing:
        await discard(request, MOST_DISCARDED)
        raise _Missing(missing)
    most = published.most_bytes(service.reservations.quotas.sets)
    announced = request.headers.get("content-length", "")
    size = published.stored_bytes(min(int(announced), most) if announced.isdecimal() else most)
    try:
        with _refused(published.about.seconds), service.reservations.job(owner, size):
            async with receive(request, service.store.new_upload(), most) as upload:
                job = await run_in_threadpool(_queue, service, owner, published, keys, upload, size, idempotency_key)
    except HTTPException as error:
        if error.status_code == 429:
            await discard(request, MOST_DISCARDED)
        raise
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return _told(service, job)


def _missing(service: Service, owner: str, identity: str, published: Published) -> tuple[str, ...]:
    engine = next((one.engine for one in service.store.parts(owner, identity).values()), published.about.engine)
    try:
        folder = KeyFolder(published.client, service.store.key_folder(owner, identity), identity, engine)
        return folder.missing(published.client)
    except (ArtifactError, BackendError) as error:
        raise HTTPException(422, _said(service, error)) from error


def _queue(
    service: Service, owner: str, published: Published, keys: str, upload: Upload, size: int, request: str | None
) -> Job:
    try:
        with open_frame(Source.of_file(upload.path), INPUT_FRAME, published.client) as payload:
            found = payload.header.identity("keys")
    except ArtifactError as error:
        text = _said(service, error).replace(f"uploads/{upload.path.name}", "the body")
        raise HTTPException(422, text) from error
    if found != keys:
        raise HTTPException(422, "the input was encrypted under other keys than it was sent with")
    job, new = service.store.add_job(owner, published.id, keys, upload.path, size, request)
    if new:
        service.metrics.uploaded.labels("inputs").inc(upload.bytes)
        service.pool.wake()
        event(log, "job queued", job=job.id, owner=owner, program=published.id, identity=keys, bytes=upload.bytes)
    return job


def _job(service: Service, owner: str, id_: str) -> Job:
    found = service.store.job(owner, _named("job", id_))
    if found is None:
        raise _absent("job")
    return found


@router.get("/v1/jobs/{job}", tags=["jobs"])
async def get_job(
    job: str,
    request: Request,
    owner: Owner,
    wait: Annotated[float, Query(ge=0, le=MOST_WAIT, description="seconds to wait for its end")] = 0.0,
) -> JobInfo:
    """The state of a job: queued, running, done, failed or cancelled."""
    service, end = _service(request), time.monotonic() + wait
    _named("job", job)
    with service.waiting(job) as changed:
        while True:
            changed.clear()
            found = await run_in_threadpool(_job, service, owner, job)
            left = end - time.monotonic()
            if found.ended or left <= 0 or not service.healthy:
                return _told(service, found)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), left)


@router.get("/v1/jobs/{job}/result", tags=["jobs"])
def get_result(job: str, request: Request, owner: Owner) -> FileResponse:
    """The encrypted result of a job that is done; 409 otherwise."""
    service = _service(request)
    found = _job(service, owner, job)
    if found.state != "done":
        raise HTTPException(409, f"the job is {found.state}" + (f": {found.error}" if found.error else ""))
    return FileResponse(service.store.job_file(found.id, RESULT), media_type="application/octet-stream")


@router.delete("/v1/jobs/{job}", tags=["jobs"])
def delete_job(job: str, request: Request, owner: Owner) -> JobInfo:
    """Cancel a job that waits or runs; forget one that has ended, with its result."""
    service = _service(request)
    found = _job(service, owner, job)
    if service.store.cancel(found.id):
        service.pool.cancelled(found.id)
    else:
        service.store.forget(found.id)
        return _told(service, found)
    return _told(service, _job(service, owner, job))


# Errors --------------------------------------------------------------------------------------------------------------


class _Missing(Exception):
    """A job whose keys are not all there."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names


@contextlib.contextmanager
def _refused(seconds: float = 1.0) -> Iterator[None]:
    """Turn what quotas and uploads say into answers; `seconds` is when to ask again."""
    try:
        yield
    except QuotaError as error:
        again = {"Retry-After": str(max(1, min(60, round(seconds))))}
        raise HTTPException(429 if error.later else 507, str(error), again if error.later else None) from error
    except UploadError as error:
        raise HTTPException(error.status, str(error)) from error


def _missing_keys(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, _Missing)
    text = f"{len(error.names)} parts of the keys are missing. Send them with PUT /v1/keys/IDENTITY/PART."
    return JSONResponse({"detail": text, "missing": list(error.names)}, 409)


class _Outer:
    """Around all routes: logs each request, counts it, and refuses other hosts and pages on a server without tokens.

    A page that somebody opens in a browser must not reach a server on the same machine, neither by a form nor by a
    name of its own that leads to 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            if self._strange(scope):
                await JSONResponse({"detail": "only programs on this machine may ask"}, 403)(scope, receive, sent)
            else:
                await self._app(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._service.metrics.requests.labels(scope["method"], route, str(status)).inc()
            event(
                log,
                "request",
                level=logging.DEBUG if route in ("/healthz", "/metrics", "/v1/load") else logging.INFO,
                method=scope["method"],
                route=route,
                status=status,
                seconds=round(time.monotonic() - start, 4),
            )

    def _strange(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        if scope["method"] not in ("GET", "HEAD") and b"origin" in headers:
            return True
        if self._service.tokens:
            return False
        host = headers.get(b"host", b"").decode("latin-1")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name not in LOCAL_HOSTS


def create_app(service: Service) -> FastAPI:
    """The app of a service, which it starts and stops."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        sweeping = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeping.cancel()
            service.healthy = False
            service.release()
            await run_in_threadpool(service.stop)

    # The page with the documentation would load scripts from elsewhere; /openapi.json is all that it shows.
    app = FastAPI(
        title="olac", version=olac_version(), description=__doc__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(_Missing, _missing_keys)
    app.add_middleware(_Outer, service=service)
    return app


async def _sweep(service: Service) -> None:
    """From time to time, forget jobs that ended long ago."""
    while True:
        gone = await run_in_threadpool(service.store.forget_older, service.reservations.quotas.keep_seconds)
        if gone:
            event(log, "old jobs forgotten", jobs=gone)
        await asyncio.sleep(SWEEP_SECONDS)


__all__ = ["create_app"]
