"""The launcher, with real processes that are small Python programs without JAX."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from scpl_jax import launch
from scpl_jax.launch import main

# As a file, the launcher starts without the package around it, which imports JAX.
LAUNCHER = [sys.executable, "-P", str(Path(launch.__file__))]
START = "import os, resource, signal, sys, time; from pathlib import Path; rank = int(os.environ['JAX_PROCESS_ID'])\n"
# Say what the process id is, and go on for longer than any test waits.
# In short sleeps: a signal that comes just before a sleep begins is looked at only when that sleep is over.
STAY = "sys.stdout.write(f'pid {os.getpid()}\\n'); [time.sleep(0.05) for _ in range(300)]\n"
# Let all processes begin what follows together.
MEET = """
Path(f"{folder}/{rank}").touch()
while len(os.listdir(folder)) < int(os.environ["JAX_NUM_PROCESSES"]):
    time.sleep(0.001)
"""
SAVE = """
def save(number, _):
    signal.signal(number, signal.SIG_DFL)  # a second one would end the process
    time.sleep(0.4)
    print("saved", flush=True)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
"""


def command(program: str, processes: int = 2, *options: str) -> list[str]:
    return ["--processes", str(processes), *options, "--", sys.executable, "-S", "-c", START + program]


@pytest.fixture
def start():
    """A function that starts a launcher; whatever happens, it is gone after the test."""
    started = []

    def call(program: str, processes: int = 2, *options: str, before=(), **streams) -> subprocess.Popen:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **streams}
        arguments = [*before, *LAUNCHER, *command(program, processes, *options)]
        started.append(subprocess.Popen(arguments, stdin=subprocess.DEVNULL, **streams))
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            process.terminate()
            time.sleep(0.3)
            process.terminate()  # the second one ends all
            process.wait(10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def run(start):
    """A function that runs a launcher to its end: (status, standard output, standard error)."""

    def call(program: str, processes: int = 2, *options: str) -> tuple[int, str, str]:
        process = start(program, processes, *options)
        output, error = process.communicate(timeout=20)
        return process.returncode, output, error

    return call


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:  # a zombie has ended; who should take note of it is not our concern
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX" if Path("/proc/self").exists() else True
    except OSError:
        return False


def pids(output: str) -> list[int]:
    return [int(line.split()[-1]) for line in output.splitlines() if "pid" in line]


def all_gone(numbers: list[int], within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while any(map(alive, numbers)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, numbers))


def lines(process: subprocess.Popen, count: int) -> str:
    return "".join(process.stdout.readline() for _ in range(count))


def test_each_process_learns_which_one_it_is():
    program = "import json, os; print(json.dumps(dict(os.environ)), flush=True)"
    environment = {**os.environ, "SOMETHING_ELSE": "kept", "JAX_NUM_PROCESSES": "77"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    arguments = [sys.executable, "-m", "scpl_jax.launch", "--processes", "3", "--", "python", "-S", "-c", program]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    seen = [json.loads(line[line.index("{") :]) for line in sorted(done.stdout.splitlines(), key=lambda line: line[:3])]
    seen.sort(key=lambda one: one["JAX_PROCESS_ID"])
    assert [one["JAX_PROCESS_ID"] for one in seen] == ["0", "1", "2"]
    assert {one["JAX_NUM_PROCESSES"] for one in seen} == {"3"}
    assert {one["SOMETHING_ELSE"] for one in seen} == {"kept"}
    (address,) = {one["JAX_COORDINATOR_ADDRESS"] for one in seen} | {
        one["JAX_COORDINATOR_BIND_ADDRESS"] for one in seen
    }
    host, port = address.split(":")
    assert host == "127.0.0.1"
    with socket.create_server((host, int(port))):  # nothing of ours holds it
        pass


def test_output_passes_through_with_the_number_of_the_process(run):
    program = """
print(f"first\\nsecond", flush=True)
print("warning", file=sys.stderr, flush=True)
print("no line end", end="")
"""
    status, output, error = run(program, 3)
    assert status == 0
    for prefix in ("", "[1] ", "[2] "):
        own = [line for line in output.splitlines() if line.startswith(prefix or tuple("fsn"))]
        assert own == [f"{prefix}{text}" for text in ("first", "second", "no line end")]
    assert sorted(error.splitlines()) == ["[1] warning", "[2] warning", "warning"]


def test_lines_arrive_when_they_are_written(start, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    process = start("print('now'); time.sleep(15)", 1)  # Python itself would keep this line for a pipe
    assert select.select([process.stdout], [], [], 10)[0]
    assert process.stdout.readline() == "now\n"


def test_pinned_processes_share_the_cores_out(run):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core can't be shared out")
    program = "print('cores', *os.sched_getaffinity(0))"
    status, output, _ = run(program, 2, "--pin")
    assert status == 0
    first, second = (set(map(int, line.split("cores")[1].split())) for line in output.splitlines())
    assert first | second == cores
    assert not first & second
    assert abs(len(first) - len(second)) <= 1
    _, output, _ = run(program, 1)
    assert set(map(int, output.split()[1:])) == cores


def test_shares_are_even_and_contiguous(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: [6, 0, 1, 5, 2, 12, 13, 14])
    assert launch._shares(3) == ["0,1", "2,5,6", "12,13,14"]


BAD = {
    "no process": (["--processes", "0", "--", "python"], "--processes must be at least 1, got 0"),
    "no number": (["--processes", "two", "--", "python"], "'two'"),
    "no number of processes": (["--", "python"], "--processes"),
    "no command": (["--processes", "2", "--"], "no command"),
    "no dashes": (["--processes", "2"], "no command"),
    "unknown option": (["--processes", "2", "--pine", "--", "python"], "--pine"),
    "unknown command": (["--processes", "2", "--", "no-such-program"], "command not found: no-such-program"),
    "not a program": (["--processes", "2", "--", __file__], "command not found"),
    "more processes than cores": (["--processes", "9999", "--pin", "--", "true"], "--pin needs a core for each"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_status_2(capfd, case):
    arguments, sentence = BAD[case]
    assert main(arguments) == 2
    printed = capfd.readouterr()
    assert sentence in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_pinning_is_refused_where_the_system_cannot_do_it(capfd, monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    assert main(["--processes", "1", "--pin", "--", "true"]) == 2
    assert capfd.readouterr().err.startswith("error: --pin is not possible here")


def test_a_program_that_cannot_be_started_is_one_sentence_too(run, tmp_path, capfd):
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert main(["--processes", "2", "--", str(script)]) == 2
    error = capfd.readouterr().err
    assert "can't be started" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("end", "status", "fate"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was ended by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "was ended by SIGTERM"),
        ("print('the reason', file=sys.stderr); sys.exit(3)", 3, "ended with status 3"),
    ],
    ids=["SIGKILL", "SIGTERM", "status 3"],
)
def test_when_one_process_fails_the_others_are_ended(run, tmp_path, end, status, fate):
    program = f"""
folder = {str(tmp_path)!r}
signal.signal(signal.SIGTERM, signal.SIG_IGN if rank != 1 else signal.SIG_DFL)
if rank == 0:
    os.fork()  # a worker that the process itself would have to end
if rank != 1:
    sys.stdout.write(f"pid {{os.getpid()}}\\n")
{MEET}
if rank == 1:
    time.sleep(0.2)
    {end}
time.sleep(15)
"""
    begin = time.monotonic()
    got, output, error = run(program, 3)
    assert got == status
    assert time.monotonic() - begin < 10
    *reason, sentence = error.splitlines()
    assert sentence == (
        f"error: process 1 {fate}; the other processes were stopped; add --resume to continue from the last checkpoint"
    )
    assert reason == (["[1] the reason"] if status == 3 else [])
    assert len(pids(output)) == 3
    assert all_gone(pids(output))


def test_a_resumed_command_is_only_to_be_run_again(capfd):
    assert main(["--processes", "1", "--", sys.executable, "-S", "-c", "raise SystemExit(5)", "--resume"]) == 5
    assert capfd.readouterr().err == (
        "error: process 0 ended with status 5; run the same command again to continue from the last checkpoint\n"
    )


def test_the_process_that_lost_its_peer_is_not_the_culprit_and_says_nothing(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "SETTLE", 1.0)
    program = f"""
folder = {str(tmp_path)!r}
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
{MEET}
if rank == 0:
    os.abort()
if rank == 1:
    time.sleep(0.2)  # ends after its victims, as a large process does
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 2:
    time.sleep(0.1)
    sys.exit(1)
time.sleep(0.4)
print("a long stack trace", file=sys.stderr, flush=True)
time.sleep(15)
"""
    assert main(command(program, 4)) == 137
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: process 1 was ended by SIGKILL")
    assert printed.err.count("\n") == 1


def test_a_mistake_that_every_process_finds_is_told_once(run):
    status, output, error = run("print('error: no such data set', file=sys.stderr); sys.exit(2)", 4)
    assert status == 2
    assert output == ""
    assert error.count("error:") == 1
    assert error.removeprefix("[1] ").removeprefix("[2] ").removeprefix("[3] ") == "error: no such data set\n"


def test_a_mistake_that_one_process_finds_ends_the_others_too(capfd, monkeypatch):
    monkeypatch.setattr(launch, "AGREE", 0.8)
    program = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 1:
    print("error: cannot read my file", file=sys.stderr)
    sys.exit(2)
sys.stdout.write(f'pid {os.getpid()}\\n')
time.sleep(0.8)
print("a long stack trace", file=sys.stderr, flush=True)
time.sleep(15)
"""
    assert main(command(program)) == 2
    printed = capfd.readouterr()
    assert printed.err == "[1] error: cannot read my file\n"
    assert all_gone(pids(printed.out))


def test_a_mistake_without_a_word_is_told_by_the_launcher(run):
    status, _, error = run("sys.exit(2)", 1)
    assert (status, error) == (2, "error: process 0 ended with status 2\n")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_lets_all_processes_save(start, number, status):
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    process = start(SAVE + STAY)
    signal.signal(signal.SIGHUP, hangup)
    numbers = pids(lines(process, 2))
    process.send_signal(number)
    time.sleep(0.02)
    process.send_signal(number)  # as a wrapper does that passes on what the terminal has already sent
    output, error = process.communicate(timeout=10)
    assert sorted(output.splitlines()) == ["[1] saved", "saved"]
    assert (process.returncode, error) == (status, "")
    assert all_gone(numbers)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_process_that_does_not_handle_the_signal_yet_is_no_failure(start, number, status):
    process = start(STAY)
    lines(process, 2)
    process.send_signal(number)
    _, error = process.communicate(timeout=10)
    assert process.returncode == status
    assert "error:" not in error


def test_processes_hear_an_interrupt_that_the_launcher_was_started_to_ignore(start):
    """A shell starts what runs in the background like that."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(STAY)
    finally:
        signal.signal(signal.SIGINT, interrupt)
    numbers = pids(lines(process, 2))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "error:" not in error
    assert all_gone(numbers)


def test_a_second_signal_ends_all_at_once(start):
    program = "signal.signal(signal.SIGTERM, lambda *_: print('not now', flush=True))\nfor _ in range(9):\n    "
    process = start(program + STAY)
    numbers = pids(lines(process, 2))
    process.send_signal(signal.SIGTERM)
    assert sorted(lines(process, 2).splitlines()) == ["[1] not now", "not now"]
    time.sleep(0.4)
    assert process.poll() is None
    assert all(map(alive, numbers))
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=5)
    assert (process.returncode, error) == (143, "stopped at once; what was saved before stays as it is\n")
    assert all_gone(numbers)


@pytest.mark.parametrize(("end", "status"), [(0, 137), (143, 143)])
def test_a_process_that_stays_after_the_others_ended_well_is_ended(capfd, monkeypatch, end, status):
    monkeypatch.setattr(launch, "PATIENCE", 0.5)
    begin = time.monotonic()
    assert main(command(f"rank == 0 and sys.exit({end})\n{STAY}")) == status
    assert 0.5 < time.monotonic() - begin < 10
    printed = capfd.readouterr()
    assert printed.err.startswith("error: process 1 did not end within 0.5 s of the others and was stopped; add --res")
    assert all_gone(pids(printed.out))


def test_the_others_may_take_their_time_after_one_ended_well(run):
    status, output, error = run("rank == 0 and sys.exit(0)\ntime.sleep(0.7)\nprint('done')")
    assert (status, output, error) == (0, "[1] done\n", "")


def test_the_processes_end_with_a_launcher_that_is_killed(start):
    if sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STAY)
    numbers = pids(lines(process, 2))
    assert all(map(alive, numbers))
    process.kill()
    process.wait(5)
    assert all_gone(numbers)


def test_a_launcher_under_nohup_does_not_mind_a_hangup(start):
    process = start(SAVE + "print('pid', flush=True); time.sleep(0.5); print('done')", 1, before=["nohup"])
    lines(process, 1)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=10)[0] == "done\n"
    assert process.returncode == 0


def test_the_processes_go_on_when_nobody_reads_their_output(start, tmp_path):
    file = tmp_path / "saved"
    program = f"print('line')\nfor _ in range(100):\n    print('x' * 9999)\nPath({str(file)!r}).touch()"
    process = start(program, 1)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(10) == 0
    assert file.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this machine")
def test_output_that_cannot_be_written_is_said_once(start):
    with open("/dev/full", "w") as full:
        process = start("for _ in range(9): print('x' * 9999, flush=True)", stdout=full)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert said == "standard output can't be written (No space left on device); the run goes on without\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_hold_nothing_up(start, tmp_path, closed):
    program = "print('out', flush=True); print('error', file=sys.stderr, flush=True); "
    program += f"Path({str(tmp_path)!r}, str(rank)).touch()"
    process = start(program, before=["sh", "-c", f'exec "$0" "$@" {closed}'])
    written = process.communicate(timeout=20)
    assert process.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    assert [sorted(text.splitlines()) for text in written] == [
        [] if ">&-" in closed.replace("2>&-", "") else ["[1] out", "out"],
        [] if "2>&-" in closed else ["[1] error", "error"],
    ]


def test_a_command_finds_a_broken_pipe_as_usual(capfd):
    assert main(["--processes", "1", "--", "sh", "-c", "yes | head -n 1"]) == 0
    assert capfd.readouterr() == ("y\n", "")


def test_process_0_draws_on_the_terminal_until_another_fails(start, tmp_path):
    terminal, inside = os.openpty()
    termios.tcsetwinsize(inside, (33, 77))
    go = tmp_path / "go"
    program = f"""
print(sys.stdout.isatty(), sys.stderr.isatty(), flush=True)
if rank == 1:
    while not Path({str(go)!r}).exists():
        time.sleep(0.01)
    sys.exit(3)
print(*os.get_terminal_size(2), flush=True)
print("50 %", end="\\r", file=sys.stderr, flush=True)
while not Path({str(go)!r}).exists():
    time.sleep(0.01)
time.sleep(0.2)
print("a long stack trace", file=sys.stderr, flush=True)
time.sleep(15)
"""
    process = start(program, stdout=inside, stderr=inside)
    os.close(inside)
    seen = b""
    expected = (b"True True\r\n", b"77 33\r\n", b"50 %\r", b"[1] False False\r\n")
    while not all(text in seen for text in expected) and select.select([terminal], [], [], 5)[0]:
        seen += os.read(terminal, 1000)
    assert sorted(seen) == sorted(b"".join(expected))
    go.touch()
    assert process.wait(10) == 3
    last = os.read(terminal, 1000)
    os.close(terminal)
    assert last.startswith(b"\r\nerror: process 1 ended with status 3")
    assert last.count(b"\n") == 2
