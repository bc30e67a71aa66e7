"""Freed memory stays with the process, and is given back when asked."""

import os
import platform
import subprocess
import sys
import types

import pytest

from scpl_jax.kernels import glibc

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

CODE = """
import ctypes, os, sys
from scpl_jax.kernels.glibc import give_back_memory, keep_freed_memory

libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def left():
    before = resident()
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return (resident() - before) / size

print(left() > 0.9, keep_freed_memory(), left() > 0.9, give_back_memory(), left() > 0.9)
before = resident()
give_back_memory()
print(before - resident() > 0.9 * size)
"""


@needs_glibc
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_freed_memory_is_kept_and_given_back():
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", CODE], env=variables, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False True True True True\nTrue\n", "")


def test_the_environment_comes_first(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not glibc.keep_freed_memory()


@pytest.fixture
def asked_again(monkeypatch):
    monkeypatch.setattr(glibc, "_function", glibc._function.__wrapped__)
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "9.9"))


@pytest.mark.usefixtures("asked_again")
@pytest.mark.parametrize("name", ["mallopt", "malloc_trim"])
def test_a_glibc_without_it_is_said_in_a_line(monkeypatch, caplog, name):
    monkeypatch.setattr(glibc.ctypes, "CDLL", lambda _: types.SimpleNamespace())
    assert not {"mallopt": glibc.keep_freed_memory, "malloc_trim": glibc.give_back_memory}[name]()
    assert caplog.messages == [f"glibc 9.9 has no {name}; steps may take longer, and more memory"]


@pytest.mark.usefixtures("asked_again")
def test_a_glibc_that_refuses_is_said_in_a_line(monkeypatch, caplog):
    monkeypatch.setattr(glibc.ctypes, "CDLL", lambda _: types.SimpleNamespace(mallopt=lambda *_: 0))
    assert not glibc.keep_freed_memory()
    assert caplog.messages == ["glibc 9.9 gives freed memory back at once; steps may take longer"]


@pytest.mark.usefixtures("asked_again")
def test_another_library_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not glibc.keep_freed_memory()
    assert not glibc.give_back_memory()
    assert caplog.messages == []
