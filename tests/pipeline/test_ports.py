"""The ports by which processes send arrays; real runs of several are in tests/experiments/test_processes.py."""

import socket
import sys

import pytest

from scpl_jax.pipeline import processes

HOST = "127.0.0.1"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port can't be kept for the backend")
def test_the_port_for_messages_is_kept_until_the_backend_listens():
    port = processes._own_port(HOST)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, port))
    with socket.socket() as backend:
        backend.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        backend.bind((HOST, port))
        backend.listen()
        with socket.create_connection((HOST, port), timeout=5):
            pass
