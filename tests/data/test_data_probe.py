import socket
import time

import pytest

from scpl_jax.data.images.readers.tfds import _reachable


@pytest.fixture
def closed():
    """Address on this machine at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/file"


def test_a_listening_host_is_reachable(listening, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert _reachable(listening)


def test_the_proxy_is_tried_where_the_environment_names_one(listening, closed, monkeypatch):
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", listening)
    assert _reachable(closed)
    monkeypatch.delenv("http_proxy")
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    assert not _reachable(closed)


def test_a_look_up_that_hangs_is_given_up(monkeypatch):
    def hang(*_, **__):
        time.sleep(1)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "create_connection", hang)
    began = time.monotonic()
    assert not _reachable("http://127.0.0.1/", timeout=0.1)
    assert time.monotonic() - began < 0.9
