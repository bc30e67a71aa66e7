"""What is printed, logged and shown can't end anything, wherever it goes."""

import contextlib
import errno
import io
import logging
import os
import subprocess
import sys

import pytest

from scpl_jax.training import Reporter, streams
from scpl_jax.training.streams import LastingStream, LostOutputError, lasting, lasting_streams

LINE = {"epoch": 1, "step": 4, "learning_rate": 0.1, "train_loss": [1.5], "test_loss": None}
LINE |= {"train_accuracy": 0.1, "test_accuracy": 0.2, "images_per_second": 3.0}


class Failing(io.StringIO):
    """A stream on a full disk, or whatever the error says."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    flush = close = lambda self: None


class FailingLate(Failing):
    """One that keeps what it is given, and fails when that is to be written."""

    def write(self, text):
        return len(text)

    def flush(self):
        raise self.error


FULL, GONE = OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError(errno.EPIPE, "Broken pipe")
CLOSED = io.StringIO()
CLOSED.close()


@contextlib.contextmanager
def standard(output, errors):
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = output, errors
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@pytest.mark.parametrize("stream", [Failing(FULL), FailingLate(FULL), Failing(GONE), CLOSED], ids=type)
@pytest.mark.parametrize("which", ["output", "error"])
def test_a_failure_is_said_once_on_the_other_stream(stream, which):
    other = io.StringIO()
    with standard(*((stream, other) if which == "output" else (other, stream))), lasting_streams():
        for _ in range(3):
            print("a line", file=sys.stdout if which == "output" else sys.stderr, flush=True)
    assert other.getvalue().startswith(f"standard {which} can't be written (")
    assert other.getvalue().count("\n") == 1


@pytest.mark.parametrize("stream", [None, Failing(FULL), CLOSED], ids=["none", "full", "closed"])
def test_where_both_fail_everything_goes_on(stream):
    with standard(stream, stream), lasting_streams() as output:
        print("a line", flush=True)
        print("a line", file=sys.stderr, flush=True)
        assert not output.isatty()
        assert sys.stdout is output
    assert sys.stdout is not output


def test_what_a_stream_has_no_letters_for_is_written_in_others():
    raw = io.BytesIO()
    with standard(io.TextIOWrapper(raw, encoding="ascii"), io.StringIO()), lasting_streams() as output:
        print("Zoë", "\udcff", flush=True)
        assert raw.getvalue() == b"Zo\\xeb \\udcff\n"
        assert output.failed is None


def test_results_that_nobody_gets_are_an_error():
    with standard(Failing(GONE), io.StringIO()), lasting_streams() as output:
        output.is_result = True
        with pytest.raises(LostOutputError, match=r"standard output can't be written \(Broken pipe\)"):
            print("3.14")


@pytest.mark.parametrize("stream", [None, Failing(FULL), FailingLate(FULL), CLOSED], ids=type)
def test_a_reporter_reports_what_it_can(stream, tmp_path):
    """Also in a program that is none of the commands."""
    with standard(stream, stream):
        for progress in (None, True):
            reporter = Reporter(tmp_path, progress=progress)
            reporter.start_epoch(1, 2, 4, 0, 8, 8)
            reporter.after_step(1, [], False)
            reporter.end_epoch()
            reporter.after_epoch(LINE, 2)
            reporter.close()


def test_a_reporter_does_without_tensorboard_where_it_cannot_be_imported(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setitem(sys.modules, "scpl_jax.training.tensorboard", None)
    reporter = Reporter(tmp_path, progress=False)
    reporter.after_epoch(LINE, 2)
    reporter.close()
    assert [record.message[:37] for record in caplog.records] == ["TensorBoard's files are not written ("]
    assert "test accuracy 0.2000" in capsys.readouterr().out


def test_a_log_goes_on():
    logger = logging.Logger("one")
    with standard(io.StringIO(), Failing(FULL)), lasting_streams():
        logger.addHandler(logging.StreamHandler())
        logger.warning("a warning")
        logger.warning("another one")
        assert sys.stdout.getvalue().count("\n") == 1


def test_a_stream_is_wrapped_once():
    assert lasting(lasting(sys.stdout)).__class__ is LastingStream
    assert isinstance(lasting(sys.stdout)._stream, type(sys.stdout))


# The module alone: the package would take seconds to import.
ALONE = f"""
import sys, types
sys.modules["scpl_jax.training.writing"] = types.SimpleNamespace(reason_of=lambda error: error.strerror)
sys.modules["scpl_jax"] = sys.modules["scpl_jax.training"] = types.ModuleType("scpl_jax")
streams = {{"__name__": "streams"}}
exec(open({streams.__file__!r}).read(), streams)
with streams["lasting_streams"]():
    for _ in range(9999):
        print("a line")
        print("a line", file=sys.stderr)
    sys.stderr.flush()
    print(open("/dev/null").fileno() > 2, file=open(sys.argv[1], "w"))
"""
ENDS = [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&-", "2>&-", "<&- >&- 2>&-", "2>&1 | head -1"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this machine")
@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_the_process_does_not_fail_either(end, tmp_path):
    shell = f'("$0" -c "$1" "$2"; echo $? > "$3") {end}'
    told, status = tmp_path / "told", tmp_path / "status"
    done = subprocess.run(["sh", "-c", shell, sys.executable, ALONE, told, status], capture_output=True, text=True)
    assert status.read_text() == "0\n"
    assert told.read_text() == "True\n"  # no file has the number of a stream
    assert "Exception" not in done.stderr
    assert "Traceback" not in done.stderr
