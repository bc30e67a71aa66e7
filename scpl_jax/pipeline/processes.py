"""A run of several processes: how they find each other and agree on small things.

Arrays move between processes as ``jax.Array`` (see :mod:`scpl_jax.pipeline.transfer`). Small values that the host
code needs (accuracies, who stops when) go through the key-value store of JAX's coordination service, as JSON. In a run
of one process everything here is trivial and immediate.
"""

import collections
import contextlib
import itertools
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from scpl_jax.kernels.xla_flags import asks_for_cpu_devices
from scpl_jax.pipeline.jax_private import key_value_store
from scpl_jax.pipeline.placement import by_process

# A peer that died is noticed after this many seconds by JAX's own client, which then ends the process. The launcher is
# faster: it watches its processes. Shorter, and a machine that pauses for a while would end the run.
HEARTBEAT_SECONDS = 60
# How long a process waits for the coordinator, in seconds.
_CONNECT_SECONDS = 15
# Values are waited for as long as it takes: a peer that has died is noticed by the heartbeat.
_WAIT_MILLISECONDS = 24 * 3600 * 1000
# Connections by which messages come in on the CPU backend.
_CONNECTIONS = 4
_names = itertools.count()
_calls: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)  # of gather, by series
_spare_cpu_devices = False
_held_ports: list[socket.socket] = []


def initialise(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of a run; must come before JAX is used.

    Args:
      coordinator_address: HOST:PORT of process 0. None with the other two: a cluster that JAX knows (SLURM, MPI,
        Kubernetes) tells.
      num_processes: number of processes.
      process_id: number of this one, from 0.

    Raises:
      ValueError: values that don't go together, no cluster, or a coordinator that does not answer, or a JAX
        whose processes can't tell each other values.
    """
    # SIGTERM is ours: finish the step, save, stop.
    jax.config.update("jax_enable_preemption_service", False)
    given = (coordinator_address, num_processes, process_id)
    where, bind = "the cluster's coordinator", None
    if given == (None, None, None):
        # The CPU backend needs an address for messages between processes; GPU backends have their own ways.
        own = socket.gethostbyname(socket.gethostname())
    else:
        host, port = _check(*given)
        where = f"{host}:{port}"
        if process_id:
            _probe(host, port)
        local = host in ("127.0.0.1", "localhost", "::1")
        own = "127.0.0.1" if local else _own_address(host, port)
        bind = coordinator_address if local else None
    jax.config.update("jax_cross_host_transfer_socket_address", f"{own}:{_own_port(own)}")
    # Without these it would listen on all interfaces.
    jax.config.update("jax_cross_host_transport_addresses", ",".join([f"{own}:0"] * _CONNECTIONS))
    _add_spare_cpu_device()
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=_CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
            coordinator_bind_address=bind,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the processes of the run could not be joined through {where} ({reason})") from error
    key_value_store()  # it is there, or the run ends here


def _add_spare_cpu_device() -> None:
    """Give a process on CPUs a second device, which :func:`devices` leaves out.

    The CPU backend has as many threads for programs and messages as there are cores or devices. A process on one core
    would have a single one, and a message would wait until the program that runs has ended. As with any other number
    of threads the last bits of results change: they equal those of one process with the same number of devices on one
    core. A number of devices that the user asks for (``--xla_force_host_platform_device_count``) is left as it is.
    """
    global _spare_cpu_devices
    if not asks_for_cpu_devices() and jax.config.values.get("jax_num_cpu_devices") in (None, -1):
        jax.config.update("jax_num_cpu_devices", 2)
        _spare_cpu_devices = True


def devices() -> list[jax.Device]:
    """The devices of all processes that a pipeline uses by default: ``jax.devices()`` without spare ones."""
    everything = jax.devices()
    if not _spare_cpu_devices or everything[0].platform != "cpu":
        return everything
    return [group[0] for group in by_process(everything).values()]


def _check(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> tuple[str, int]:
    """Host and port of the coordinator, if all three are given and make sense."""
    if coordinator_address is None or num_processes is None or process_id is None:
        raise ValueError(
            "--coordinator-address, --num-processes and --process-id belong together; give all three, or start the "
            "processes with python -m scpl_jax.launch"
        )
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"--coordinator-address must be HOST:PORT, got {coordinator_address!r}")
    if num_processes < 1:
        raise ValueError(f"--num-processes must be at least 1, got {num_processes}")
    if not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id must be from 0 to {num_processes - 1}, got {process_id}")
    return host, int(port)


def from_environment() -> tuple[str, int, int] | None:
    """(coordinator's address, number of processes, number of this one) as the launcher sets them, or None.

    Raises:
      ValueError: some are missing or not numbers.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    values = [os.environ.get(name) for name in names]
    if values[1] is None and values[2] is None:
        return None
    try:
        address, count, index = values
        assert address
        return address, int(count or ""), int(index or "")
    except (AssertionError, ValueError):
        raise ValueError(f"the environment variables {', '.join(names)} belong together, got {values}") from None


def _probe(host: str, port: int) -> None:
    """Wait until somebody listens at the coordinator's address; JAX's own client would abort the process instead."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            with socket.create_connection((host, port), timeout=2):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise ValueError(
                    f"the coordinator at {host}:{port} did not answer within {_CONNECT_SECONDS} s ({reason}); start "
                    "process 0 there, or correct --coordinator-address"
                ) from None
            time.sleep(0.2)


def _own_address(host: str, port: int) -> str:
    """The address by which this machine reaches the coordinator."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.connect((host, port))
        address: str = probe.getsockname()[0]
        return address


def _own_port(host: str) -> int:
    """A free port, which on Linux nobody else is given until the backend listens at it.

    That is only at the first message, many seconds later. There two sockets may have one port as long as at most one
    of them listens and both allow it, as the backend's does.
    """
    holder = socket.socket()
    on_linux = sys.platform == "linux"
    if on_linux:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((host, 0))
    port: int = holder.getsockname()[1]
    if on_linux:
        _held_ports.append(holder)
    else:
        holder.close()
    return port


def is_first() -> bool:
    """Whether this process prints and writes what is written once."""
    return jax.process_index() == 0


def _client() -> Any:
    assert jax.distributed.is_initialized(), "the processes have not joined"
    return key_value_store()


def gather(value: Any, series: str = "main") -> list[Any]:
    """A JSON value of every process, in the order of the processes; every process must call it.

    Args:
      value: this process's.
      series: a name for calls that come in the same order in all processes; a thread besides the main one needs a
        series of its own.

    Example:
      >>> gather({"correct": 3})
      [{'correct': 3}]
    """
    if jax.process_count() == 1:
        return [value]
    number = next(_calls[series])
    client, name = _client(), f"scpl_jax/gather/{series}"
    client.key_value_set(f"{name}/{number}/{jax.process_index()}", json.dumps(value))
    found = [
        json.loads(client.blocking_key_value_get(f"{name}/{number}/{index}", _WAIT_MILLISECONDS))
        for index in range(jax.process_count())
    ]
    # Whoever gave a value to this call has all of the one before; kept, they would fill the coordinator's memory.
    client.key_value_delete(f"{name}/{number - 1}/{jax.process_index()}")
    return found


def from_first(value: Any) -> Any:
    """Process 0's JSON value for all; every process must call it, the values of the others are not used."""
    if jax.process_count() == 1:
        return value
    name = f"scpl_jax/first/{next(_names)}"
    if is_first():
        _client().key_value_set(name, json.dumps(value))
    return json.loads(_client().blocking_key_value_get(name, _WAIT_MILLISECONDS))


def decided_by_first(decide: Callable[[], Any]) -> Any:
    """What process 0 finds, a JSON value, for all; every process must call it.

    Raises:
      ValueError: ``decide`` raised it in process 0; then it is raised in every process.
    """
    if jax.process_count() == 1:
        return decide()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": decide()}
        except ValueError as error:
            answer = {"error": str(error)}
    answer = from_first(answer)
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


@contextlib.contextmanager
def entered_by_first(enter: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """What process 0 enters, for the time of the block; every process must come here.

    Raises:
      ValueError: process 0 could not enter; then it is raised in every process.
    """
    with contextlib.ExitStack() as stack:

        def decide() -> None:
            stack.enter_context(enter())

        decided_by_first(decide)
        yield


def publish(key: str, value: Any) -> None:
    """Leave a JSON value for another process to find; nobody waits. What is there already stays."""
    with contextlib.suppress(RuntimeError):
        _client().key_value_set(f"scpl_jax/published/{key}", json.dumps(value))


def collect(folder: str, *, remove: bool = True) -> dict[str, Any]:
    """The values left under the keys ``folder/...``; by default they are removed."""
    if jax.process_count() == 1:
        return {}
    found = {}
    for key, value in _client().key_value_dir_get(f"scpl_jax/published/{folder}"):
        found[key.rpartition("published/")[2]] = json.loads(value)
        if remove:
            _client().key_value_delete(key)
    return found


def leave() -> None:
    """Part from the others in an orderly way, at the end of the program."""
    if jax.process_count() > 1:
        logging.getLogger("jax").setLevel(logging.ERROR)
        jax.distributed.shutdown()
