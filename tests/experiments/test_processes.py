"""Runs of several real processes on 127.0.0.1, by the command line."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from closeness import assert_close

CIFAR = [sys.executable, "-m", "scpl_jax.experiments.cifar"]
LAUNCH = [sys.executable, "-m", "scpl_jax.launch", "--processes", "2"]
# Small enough for seconds; eight epochs of eight steps, so that a signal finds them under way.
TINY = ["--dataset", "digits", "--image-size", "16", "--stages", "2", "--width", "0.03", "--head-dims", "16,8"]
TINY += ["--limit-train", "256", "--limit-test", "50", "--batch-size", "32", "--epochs", "8", "--save-every", "3"]
TINY += ["--no-tensorboard"]
# Sums are in another order with another number of threads: one core a process, and as many devices, so threads, as a
# process of several has by itself.
ONE_CORE = (
    "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    "os.environ['XLA_FLAGS'] += ' --xla_force_host_platform_device_count=2'; os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    variables = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS",)}
    cache = tmp_path_factory.mktemp("cache")
    # What compilation saves counts more here than how fast the programs are.
    variables["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    return {**variables, "XDG_CACHE_HOME": str(cache), "HOME": str(cache), "JAX_PLATFORMS": "cpu"}


def command(out, *options, processes=1):
    run = [*CIFAR, *TINY, "--out-dir", str(out), "--cache-dir", os.environ["SCPL_JAX_TEST_CACHE"], *options]
    pinned = ["--pin"] if os.cpu_count() > 1 else []
    return [*LAUNCH, *pinned, "--", *run] if processes == 2 else [sys.executable, "-c", ONE_CORE, *run]


def finish(arguments, environment, status=0):
    """Run to the end. A run that takes longer says where all of its threads are."""
    variables = {**environment, "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        arguments, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        stdout, stderr = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in map(int, children or [process.pid]):
            os.kill(pid, signal.SIGABRT)
        try:
            stdout, stderr = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"no end after 200 s\n{stdout}{stderr}") from None
    assert process.returncode == status, stdout + stderr
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def until(arguments, environment, text, act):
    """Run until a line with this text is printed, then act on the process; (status, output, seconds it took to end)."""
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    else:
        raise AssertionError("".join(lines) + process.stderr.read())
    act(process)
    began = time.monotonic()
    rest, errors = process.communicate(timeout=100)
    return process.returncode, "".join(lines) + rest + errors, time.monotonic() - began


def outcome(out):
    """What must not depend on processes: every line without its times, and every array of the last checkpoint."""
    import orbax.checkpoint as ocp

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    times = ("train_seconds", "images_per_second", "texts_per_second")
    lines = [{k: v for k, v in line.items() if k not in times} for line in lines]
    folder = max((out / "checkpoints" / "seed-0").iterdir(), key=lambda path: int(path.name))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        arrays = [checkpointer.restore(path) for path in sorted(folder.glob("stage_*"))]
    assert len(arrays) == 2
    return lines, arrays


def assert_same(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, environment):
    out = tmp_path_factory.mktemp("processes") / "undisturbed"
    finish(command(out), environment)
    return out


pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity"),
]
two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores, one a process")


@two_cores
def test_two_processes_equal_one_to_the_bit(undisturbed, environment):
    out = undisturbed.parent / "two"
    done = finish(command(out, processes=2), environment)
    assert_same(outcome(undisturbed), outcome(out))
    assert len(re.findall(r"epoch \d/8", done.stdout)) == 8
    results = json.loads((out / "results.json").read_text())
    assert len(results["peak_memory_bytes_per_process"]) == 2
    assert len(results["devices"]) == 2
    alone = json.loads((undisturbed / "results.json").read_text())
    assert [one["stage"] for one in results["probes"]] == [0, 1]  # each process probes its own stage
    assert results["probes"] == alone["probes"]


@two_cores
@pytest.mark.parametrize("method", ["al"])
def test_other_rules_in_two_processes_equal_one_to_the_bit(tmp_path, environment, method):
    options = ["--method", method, "--epochs", "2", "--exit-patience", "1"]
    finish(command(tmp_path / "one", *options), environment)
    finish(command(tmp_path / "two", *options, processes=2), environment)
    assert_same(outcome(tmp_path / "one"), outcome(tmp_path / "two"))
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert [one["stage"] for one in results["exits"]] == [0, 1]
    assert [one["patience"] for one in results["early_stops"]].count(1) == 1
    assert (tmp_path / "two" / "plots" / "exits.svg").exists()


@two_cores
def test_a_queue_and_numbers_of_stages_in_two_processes_equal_one_to_the_bit(tmp_path, environment):
    options = ["--queue", "50", "--temperature", "0.5,0.1", "--lr", "1e-3,3e-4", "--warmup-steps", "5", "--epochs", "2"]
    finish(command(tmp_path / "one", *options), environment)
    finish(command(tmp_path / "two", *options, processes=2), environment)
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    assert_same(one, two)
    assert [len(line["learning_rate"]) for line in two[0]] == [2, 2]
    held = [arrays[name] for arrays in two[1] for name in arrays if name.endswith("queue/labels/value")]
    assert [(labels != -1).sum() for labels in held] == [50, 50]


@two_cores
def test_texts_of_several_lengths_in_two_processes_equal_one_to_the_bit(tmp_path, environment):
    file = tmp_path / "texts.csv"
    rows = [f"{' '.join(['good', 'bad'][i % 2] + str(i % 5) for _ in range(1 + i % 20))},{i % 2}" for i in range(160)]
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    small = ["--dataset", "file", "--data-file", str(file), "--stages", "2", "--layers", "2", "--buckets", "2"]
    small += ["--width", "0.02", "--embedding-size", "6", "--batch-size", "16", "--epochs", "2", "--no-tensorboard"]

    def train(out, processes):
        places = ["--out-dir", str(out), "--cache-dir", os.environ["SCPL_JAX_TEST_CACHE"]]
        run = [sys.executable, "-m", "scpl_jax.experiments.text", *small, *places]
        before = [*LAUNCH, "--pin", "--"] if processes == 2 else [sys.executable, "-c", ONE_CORE]
        done = finish([*before, *run], environment)
        assert "padded to 8, 24" in done.stdout
        return outcome(out)

    assert_same(train(tmp_path / "one", 1), train(tmp_path / "two", 2))


def kill_second(process):
    """SIGKILL the process that has number 1."""
    children = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split("\n")
    mine = [int(row.split()[0]) for row in children[1:] if row and int(row.split()[1]) == process.pid]
    for pid in mine:
        if b"JAX_PROCESS_ID=1\0" in Path(f"/proc/{pid}/environ").read_bytes():
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError(f"no process 1 among {mine}")


@two_cores
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process by /proc")
def test_stopped_killed_and_resumed_in_other_numbers_of_processes(undisturbed, environment):
    """One process, stopped; two, of which one is killed; two, stopped; one to the end."""
    out = undisturbed.parent / "chain"
    status, said, _ = until(command(out), environment, "first step", lambda p: p.send_signal(signal.SIGTERM))
    assert status == 143, said
    resumed = [*command(out, processes=2), "--resume"]
    status, said, seconds = until(resumed, environment, "epoch 1/8", kill_second)
    assert status == 128 + signal.SIGKILL, said
    assert seconds < 30
    assert said.count("error:") == 1
    assert "process 1 was ended by SIGKILL" in said
    assert "run the same command again" in said
    status, said, _ = until(resumed, environment, "first step", lambda p: p.send_signal(signal.SIGINT))
    assert status == 130, said
    assert "stopped and saved" in said
    finish([*command(out), "--resume"], environment)
    assert_same(outcome(undisturbed), outcome(out))


@two_cores
def test_data_spread_over_processes_trains_alike(undisturbed, environment):
    """Two processes of two devices each; every stage has a device of both, and messages stay inside a process."""
    out = undisturbed.parent / "data"
    options = ["--across-hosts", "data", "--data-parallel", "2"]
    two_devices = {**environment, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    finish(command(out, *options, processes=2), two_devices)  # two a process
    stages = json.loads((out / "config.json").read_text())["stages"]
    assert [len(stage["devices"]) for stage in stages] == [2, 2]
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    expected = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[0])
    assert_close(first["train_loss"], expected["train_loss"], 2e-3)


@two_cores
def test_backpropagation_over_two_processes(undisturbed, environment):
    outs = [undisturbed.parent / f"gpipe-{number}" for number in (1, 2)]
    for number, out in enumerate(outs, start=1):
        options = ["--method", "gpipe", "--micro-batches", "2", "--epochs", "2"]
        finish(command(out, *options, processes=number), environment)
    one, two = (json.loads((out / "results.json").read_text()) for out in outs)
    assert two["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.1)
    losses = [json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["train_loss"] for out in outs]
    assert_close(*losses, 1e-3)
    assert len(losses[0]) == 1


def test_a_coordinator_that_does_not_answer(tmp_path, environment):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    began = time.monotonic()
    options = ["--coordinator-address", address, "--num-processes", "2", "--process-id", "1"]
    done = finish([*CIFAR, *TINY, "--out-dir", str(tmp_path / "run"), *options], environment, status=2)
    assert time.monotonic() - began < 30
    assert done.stderr.count("\n") == 1
    assert f"error: the coordinator at {address} did not answer within" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-processes", "2"], "belong together"),
        (["--coordinator-address", "here", "--num-processes", "2", "--process-id", "1"], "must be HOST:PORT"),
        (["--coordinator-address", "127.0.0.1:1", "--num-processes", "2", "--process-id", "2"], "from 0 to 1, got 2"),
        (["--coordinator-address", "127.0.0.1:1", "--num-processes", "x", "--process-id", "2"], "whole number"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, environment, options, message):
    done = finish([*CIFAR, *TINY, "--out-dir", str(tmp_path / "run"), *options], environment, status=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@two_cores
def test_a_mistake_in_all_processes_is_said_once(tmp_path, environment):
    out = tmp_path / "run"
    done = finish(command(out, "--data-parallel", "3", processes=2), environment, status=2)
    assert done.stderr.count("error:") == 1
    assert "data_parallel 3 needs 3 devices a stage, there are 2" in done.stderr
