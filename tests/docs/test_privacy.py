"""Nothing is sent: a model is compiled and run from end to end while no socket may connect and no name is looked up."""

from __future__ import annotations

import socket
from typing import NoReturn

import numpy as np
import pytest
import torch

import olac


class NetworkUsed(Exception):
    """Something tried to use the network."""


def refuse(*arguments: object, **named: object) -> NoReturn:
    raise NetworkUsed(arguments)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex", "bind", "listen", "sendto", "send", "sendall"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.encrypted
@pytest.mark.usefixtures("no_network")
def test_nothing_is_sent_from_compiling_to_decrypting() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    inputs = torch.rand(64, 4)
    program = olac.compile(model, inputs.split(32), log_ring=10, insecure=True, degree=2, reconstruct=0)
    with pytest.warns(UserWarning, match="without security"):
        read = olac.CompiledProgram.from_bytes(program.to_bytes())
    client = olac.Client(read)
    server = olac.Server(read, client.generate_keys())
    decrypted = client.decrypt(server.run(client.encrypt(inputs[:1])))
    assert np.abs(decrypted - read.simulate(inputs[:1])).max() < 0.1


@pytest.mark.usefixtures("no_network")
def test_the_network_is_refused_here() -> None:
    with pytest.raises(NetworkUsed), socket.socket() as one:
        one.connect(("127.0.0.1", 9))
    with pytest.raises(NetworkUsed):
        socket.getaddrinfo("localhost", 9)
    with pytest.raises(NetworkUsed), olac.RemoteServer("http://127.0.0.1:9", "model", patience=0) as server:
        _ = server.program
