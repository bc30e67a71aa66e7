import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scpl_jax.training import Interrupt, Reporter, RunDirectory, RunError, build_optimizer, cosine_schedule


def test_cosine_runs_from_start_to_end_and_changes_only_when_due():
    every_step = cosine_schedule(1.0, 0.1, 10)
    every_five = cosine_schedule(1.0, 0.1, 10, every=5)
    assert float(every_step(0)) == pytest.approx(1.0)
    assert float(every_step(10)) == pytest.approx(0.1)
    assert float(every_step(5)) == pytest.approx(0.55)
    assert [float(every_five(s)) for s in (5, 7, 9)] == [float(every_step(5))] * 3
    rates = [float(every_step(s)) for s in range(11)]
    assert all(np.diff(rates) < 0)


@pytest.mark.parametrize("every", [1, 4])
def test_a_warm_up_rises_by_equal_steps_and_leaves_the_rest_to_the_cosine(every):
    schedule = cosine_schedule(1.0, 0.1, 16, every, warmup_steps=6)
    rates = [float(schedule(step)) for step in range(17)]
    np.testing.assert_allclose(rates[:6], np.arange(1, 7) / 7, rtol=1e-6)
    steps = np.arange(6, 17) // every * every
    wanted = cosine_schedule(1.0, 0.1, 10)
    np.testing.assert_allclose(rates[6:], [float(wanted(max(step - 6, 0))) for step in steps], rtol=1e-6)
    assert rates[6] == 1
    assert rates[-1] == pytest.approx(0.1)


def test_no_warm_up_is_to_the_bit_the_schedule_without():
    plain, none = cosine_schedule(0.3, 0.1, 7, 2), cosine_schedule(0.3, 0.1, 7, 2, warmup_steps=0)
    assert [plain(step) for step in range(8)] == [none(step) for step in range(8)]


@pytest.mark.parametrize("steps", [-1, 7, 8])
def test_a_warm_up_must_end_before_the_run(steps):
    said = f"^`warmup_steps` must be at least 0 and fewer than the 7 steps of the run, got {steps}; "
    with pytest.raises(RunError, match=said):
        cosine_schedule(0.3, 0.1, 7, warmup_steps=steps)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lamb", "lars", "lion", "rmsprop"])
def test_optimizers_by_name_move_parameters(name):
    optimizer = build_optimizer(name, optax.constant_schedule(0.1))
    params = {"w": jnp.ones(3)}
    updates, _ = optimizer.update({"w": jnp.ones(3)}, optimizer.init(params), params)
    assert bool((updates["w"] != 0).all())


@pytest.mark.parametrize("name", ["nonsense", "chain", "clip", "apply_updates", "__doc__", "a b", "losses"])
def test_other_names_are_refused(name):
    with pytest.raises(RunError, match="is not an Optax optimizer"):
        build_optimizer(name, optax.constant_schedule(0.1))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_remembered(number, status):
    with Interrupt() as interrupt:
        os.kill(os.getpid(), number)
        assert interrupt.received == number
        assert interrupt.exit_status == status


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["as usual", "ignored before"])
def test_the_second_ctrl_c_ends_at_once(before, request):
    usual = signal.signal(signal.SIGINT, before)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))
    with Interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_closed_terminal_is_remembered_and_printing_goes_on(tmp_path, request):
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the child inherits it
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, usual))
    code = """
import os, signal, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # now it is the controlling terminal
from scpl_jax.training.interrupt import Interrupt
with Interrupt() as interrupt:
    print("ready", flush=True)
    while interrupt.received is None:
        signal.pause()
    print("a line that nobody reads", flush=True)
    os.kill(os.getpid(), signal.SIGHUP)  # shells send it besides the kernel
    open(sys.argv[1], "w").write(str(interrupt.exit_status))
"""
    terminal, inside = os.openpty()
    command = [sys.executable, "-c", code, str(tmp_path / "status")]
    with subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, start_new_session=True) as process:
        os.close(inside)
        assert b"ready" in os.read(terminal, 1024)
        os.close(terminal)
        assert process.wait(60) == 0
    assert (tmp_path / "status").read_text() == "129"


def test_a_process_that_ignores_closed_terminals_goes_on_doing_so(request):
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, usual))
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.received is None


def test_json_files_are_replaced_whole(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.write_results({"test_accuracy": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        directory.write_results({"test_accuracy": float("nan")})
    assert '"test_accuracy": 0.5' in (tmp_path / "results.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_an_unreadable_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(RunError, match=r"config\.json can't be read as JSON"):
        RunDirectory.config_of(tmp_path)


def test_a_file_in_place_of_the_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"`out_dir` .* can't be written"):
        RunDirectory(tmp_path / "file" / "run")


def test_an_epoch_without_finite_losses_is_still_reported(tmp_path, capsys):
    reporter = Reporter(tmp_path, progress=False)
    line = {"epoch": 1, "step": 4, "learning_rate": 0.1, "train_loss": [None, 1.5], "test_loss": None}
    reporter.after_epoch({**line, "train_accuracy": 0.1, "test_accuracy": 0.2, "images_per_second": 3.0}, 2)
    reporter.close()
    assert "loss nan 1.5000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rate", "curves"),
    [(0.1, {"learning_rate": 0.1}), ([0.1, 0.2], {"learning_rate/stage_0": 0.1, "learning_rate/stage_1": 0.2})],
    ids=["one", "one a stage"],
)
def test_each_learning_rate_has_a_curve(tmp_path, monkeypatch, rate, curves):
    reporter, points = Reporter(tmp_path, progress=False), {}
    monkeypatch.setattr(reporter._curves, "add", lambda name, value, step: points.update({name: value}))
    line = {"epoch": 1, "step": 4, "learning_rate": rate, "train_loss": [1.5], "test_loss": None, "test_accuracy": 0.2}
    reporter.after_epoch({**line, "images_per_second": 3.0}, 2)
    reporter.close()
    assert points == {"test_accuracy": 0.2, "epoch_loss/stage_0": 1.5, **curves}
