"""`olac serve`: the app on an address, until it is told to stop."""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path

import uvicorn

from olac.errors import OlacError, plain
from olac.serving.app import create_app
from olac.serving.logs import event, set_up
from olac.serving.pool import Settings
from olac.serving.quotas import Quotas
from olac.serving.service import Service
from olac.serving.tokens import Tokens

log = logging.getLogger(__name__)

CONNECTIONS = 512
"""At once; more are told to come again later."""
CLOSING_SECONDS = 5
"""For answers that are on their way when the server is told to stop."""


def serve(
    data: str | Path,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8750,
    tokens: str | Path | None = None,
    quotas: Quotas | None = None,
    tls: tuple[Path, Path] | None = None,
) -> None:
    """Serve a data folder until SIGTERM or SIGINT.

    Args:
        settings: of the workers.
        host: an address; without tokens, one of this machine.
        tokens: a file of them.
        tls: the files of a certificate and its key.

    Raises:
        OlacError: the address is not allowed without tokens, or can't be used.
        ArtifactError: the folder or the file of tokens can't be used.
    """
    if tokens is None and not is_local(host):
        raise OlacError(
            f"the address {plain(host)} is reached by others, and without tokens everybody could use the server and "
            "its keys. Give --tokens FILE, or leave --host at 127.0.0.1."
        )
    known = Tokens() if tokens is None else Tokens.load(tokens)
    set_up(settings.log_level)
    if not is_local(host) and tls is None:
        event(log, "tokens travel in the clear unless a proxy speaks TLS", level=logging.WARNING, host=host)
    service = Service(data, settings, known, quotas)
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        ssl_certfile=None if tls is None else tls[0],
        ssl_keyfile=None if tls is None else tls[1],
        lifespan="on",
    )
    try:
        uvicorn.Server(config).run()
    except SystemExit as error:  # uvicorn's way to say that it could not start; it has logged why
        if error.code:
            raise OlacError(f"{plain(host)}:{port} can't be served; the log says why. Try another --port.") from error


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


__all__ = ["is_local", "serve"]
