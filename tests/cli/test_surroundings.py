"""What surrounds a command can't end it: no home directory, an odd environment, no device, no way to draw."""

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import jax
import pytest

from scpl_jax import report
from scpl_jax.analysis import figures
from scpl_jax.benchmarks import memory, simulate, throughput
from scpl_jax.cli import command_line
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import keep_compiled, shell_line
from scpl_jax.cli.run_options import from_json
from scpl_jax.cli.task_options import Options, TextOptions
from scpl_jax.data import DataError, TextRequest, load, load_texts, paths
from scpl_jax.data.images.readers import tfds
from scpl_jax.experiments import reproduce
from scpl_jax.experiments.cifar import main
from scpl_jax.experiments.tables import find
from scpl_jax.training import RunDirectory, RunError

RUN = [
    "--dataset", "synthetic", "--width", "0.03", "--head-dims", "8,8", "--batch-size", "32", "--augment", "none",
    "--limit-train", "128", "--limit-test", "40", "--stages", "2", "--epochs", "2", "--no-tensorboard",
    "--method", "early-exit", "--timeline",
]  # fmt: skip


@pytest.fixture(autouse=True)
def said_before(monkeypatch):
    monkeypatch.setattr(paths, "_said", set())


@pytest.fixture
def homeless(monkeypatch):
    """As in a container whose user has no entry in the system's list."""
    import pwd

    def unknown(_):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(paths, "DEFAULT_CACHE_DIR", Path("~/.cache/scpl_jax"))


@pytest.fixture
def compiled_kept():
    """The options of JAX that a command sets, as they were."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield lambda: tuple(getattr(jax.config, name) for name in names)
    for name, value in before.items():
        jax.config.update(name, value)


# Paths


KINDS = [(Options, "cifar"), (TextOptions, "text"), (throughput.Options, "throughput"), (simulate.Options, "simulate")]
KINDS += [(memory.Options, "memory"), (reproduce.Options, "reproduce"), (report.Options, "scpl_jax.report")]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_every_path_of_every_command_knows_the_home_directory(kind, name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {field: hint for field, hint in get_type_hints(kind).items() if "Path" in str(hint)}
    assert paths
    for field, hint in paths.items():
        given = ["~/a.svg", "~/b.svg"] if "tuple" in str(hint) else [f"--{field.replace('_', '-')}=~/a.svg"]
        found = getattr(parse_options(kind, given, name, kind()), field)
        expected = tmp_path / "a.svg"
        assert found == ((expected, tmp_path / "b.svg") if isinstance(found, tuple) else expected)
        words = [word.replace("~/a.svg", "~nobody-here/x") for word in given]
        option = field.replace("_", "-")
        with pytest.raises(DataError, match=f"{option} ~nobody-here/x: the home directory ~nobody-here is not known"):
            parse_options(kind, words, name, kind())


def test_saved_paths_and_tables_know_it_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_json(TextOptions, {"word_vectors": "~/v.txt"}).word_vectors == tmp_path / "v.txt"
    (tmp_path / "table.toml").write_text("")
    assert find("~/table.toml", []) == tmp_path / "table.toml"


def test_a_run_in_the_home_directory_is_found_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    RunDirectory(tmp_path / "run").write_config({"options": {}})
    assert run(main, ["--out-dir=~/run", "--dataset", "imagefolder"]) == 2
    assert f"--out-dir {tmp_path}/run holds a run already" in capsys.readouterr().err
    assert not Path("~").exists()


def test_data_know_the_home_directory_in_a_program_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = "".join(f"{word} film,{label}\n" for label, word in enumerate(("fine", "dull")) for _ in range(10))
    (tmp_path / "texts.csv").write_text("text,label\n" + rows)
    file = Path("~/texts.csv")
    assert load_texts(TextRequest("file", data_file=file, test_file=file, cache_dir=Path("~/c"))).num_classes == 2
    assert (tmp_path / "c" / "datasets").is_dir()


def test_a_directory_that_checkpoints_could_not_lie_in_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"`out_dir` '.*\\udcff' is no UTF-8"):
        RunDirectory(tmp_path / "\udcff")


@pytest.mark.parametrize("name", ["run", "my son's run", 'a "b"\n$c', "-x", "é"])
def test_printed_commands_can_be_pasted(name, tmp_path):
    line = shell_line("scpl_jax.experiments.cifar", "--out-dir", Path(name), "--resume")
    python = 'python() { for word; do printf "%s\\0" "$word"; done; }; '
    words = subprocess.run(["sh", "-c", python + line], capture_output=True, text=True, check=True).stdout.split("\0")
    assert words[:3] == ["-m", "scpl_jax.experiments.cifar", "--out-dir"]
    assert shlex.split(line)[1:] == words[:-1]
    options = parse_options(Options, words[2:-1], "cifar", Options())
    assert (options.out_dir, options.resume) == (Path(name), True)


# Home and cache


def test_without_a_home_directory_nothing_is_cached_and_that_is_said_once(homeless, caplog, compiled_kept):
    assert load("digits").name == "digits"
    assert load("digits").name == "digits"
    keep_compiled(None)
    assert compiled_kept() == (None, 0)
    assert [record.message for record in caplog.records] == [
        "There is no home directory, so nothing is cached; `cache_dir` names a folder for it."
    ]


def test_without_a_home_directory_data_that_lie_there_are_named(homeless, monkeypatch):
    assert tfds.find_prepared("cifar10", None) is None
    with pytest.raises(DataError, match="TFDS_DATA_DIR, ~/tensorflow_datasets: the home directory ~ is not known"):
        load("cifar10")
    with pytest.raises(DataError, match="`cache_dir` ~/c: the home directory ~ is not known"):
        keep_compiled(Path("~/c"))


def test_a_cache_that_cannot_be_written_costs_a_sentence(tmp_path, caplog, compiled_kept):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        keep_compiled(tmp_path / "file")
    assert compiled_kept() == (f"{tmp_path}/file/compiled", float("inf"))  # read, but not written
    assert [record.message for record in caplog.records] == [
        f"Compiled programs are not kept in {tmp_path}/file (Not a directory); --cache-dir names another folder for "
        "them."
    ]


# Devices


@pytest.fixture
def no_device(monkeypatch):
    def missing():
        raise RuntimeError("Unable to initialize backend 'cuda': no such thing\nand more")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", missing)


@pytest.mark.parametrize("error", [RuntimeError("somewhere in JAX"), AssertionError()])
def test_a_device_that_is_not_there_is_one_sentence(no_device, capsys, error):
    def fails(_):
        raise error

    for command in (main, fails):
        assert run(command, []) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: JAX can't have the devices that JAX_PLATFORMS=cuda asks for (Unable to initial")
        assert "; unset JAX_PLATFORMS, or, for a GPU, install its driver and jax[cuda13]\n" in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), AssertionError()])
def test_other_errors_of_these_kinds_keep_their_traceback(error):
    def fails(_):
        raise error

    with pytest.raises(type(error)):
        run(fails, [])


def test_help_and_commands_without_devices_need_none(no_device, capsys):
    assert run(main, ["--help"]) == 0
    assert "--stages" in capsys.readouterr().out
    assert run(report.main, ["nowhere"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_backend_that_jax_misses_is_one_sentence():
    code = "import sys; from scpl_jax.cli.command_line import run, _check_devices; "
    code += "sys.exit(run(lambda _: _check_devices(), []))"
    env = {"JAX_PLATFORMS": "gpuu", "PATH": "", "PYTHONPATH": str(Path(report.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX can't have the devices that JAX_PLATFORMS=gpuu asks for (")
    assert done.stderr.count("\n") == 1


# Other variables


@pytest.mark.parametrize("value", ["", "x", "0", "-5", "1", "3", "39", "100000"])
def test_any_width_of_a_terminal_will_do(monkeypatch, capsys, value):
    monkeypatch.setenv("COLUMNS", value)
    with pytest.raises(SystemExit):
        parse_options(memory.Options, ["--help"], "memory", memory.Options())
    assert "--depths" in capsys.readouterr().out
    with pytest.raises(RunError, match="unrecognized options: --no-such; --help"):
        parse_options(memory.Options, ["--no-such"], "memory", memory.Options())
    assert command_line.os.environ["COLUMNS"] == value


def test_colours_of_a_terminal_do_not_get_into_a_sentence(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(RunError, match="error parsing --steps: ") as caught:
        parse_options(memory.Options, ["--steps", "x"], "memory", memory.Options())
    assert "\x1b" not in str(caught.value)


def test_a_machine_without_a_folder_for_temporary_files_is_one_sentence(monkeypatch, capsys):
    def nowhere(*_):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    assert run(nowhere, []) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: No usable temporary directory found in ['/tmp']; set TMPDIR to a folder that can be written\n"
    )


# Results that are only printed


class Full:
    encoding = "utf-8"

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")

    def isatty(self):
        return False


SMALL = ["--stages", "2", "--micro-batches", "2", "--channels", "4", "--image-size", "4", "--batch-size", "2"]


@pytest.mark.parametrize("stream", [Full(), None], ids=["full", "none"])
def test_results_that_are_only_printed_must_be(monkeypatch, capsys, tmp_path, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(simulate.main, SMALL) == (2 if stream is None else 1)
    said = capsys.readouterr().err
    assert said.startswith(
        "error: standard output " + ("is closed" if stream is None else "can't be written (No space")
    )
    assert said.count("\n") == 1
    assert run(simulate.main, [*SMALL, "--output", str(tmp_path / "numbers.json")]) == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert run(main, ["--help"]) == (0 if stream is None else 1)


# Figures


@pytest.fixture
def undrawable(monkeypatch):
    def broken():
        raise ValueError("no backend")

    monkeypatch.setattr(figures, "_matplotlib", broken)


def test_a_run_whose_figures_cannot_be_drawn_is_whole(undrawable, tmp_path, cache, caplog, capsys):
    caplog.set_level(logging.WARNING)
    path = tmp_path / "run"
    assert run(main, [*RUN, "--cache-dir", str(cache), "--out-dir", str(path)]) == 0
    assert json.loads((path / "results.json").read_text())["exits"]
    assert (path / "timeline.json").exists()
    assert [record.message for record in caplog.records] == [
        "timeline.svg could not be written (no backend); the numbers are whole",
        "plots/exits.svg could not be written (no backend); the numbers are whole",
    ]
    assert not (path / "timeline.svg").exists()
    assert run(report.main, [str(path), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "This figure could not be written." in page
    assert "test accuracy" in page


def test_a_figure_that_was_asked_for_and_is_not_there_is_status_1(undrawable, monkeypatch, tmp_path, capsys):
    found = {"peak_bytes": 1, "temporary_bytes": 2, "parameters": 3}
    monkeypatch.setattr(memory.measure, "in_own_process", lambda *_: found)
    given = ["--depths", "4", "--output", str(tmp_path / "a.json"), "--figure", str(tmp_path / "a.svg")]
    assert run(memory.main, given) == 1
    assert json.loads((tmp_path / "a.json").read_text())["table"]
    assert run(memory.main, [*given[:-1], str(tmp_path / "a.txt")]) == 2
    assert "is neither SVG nor PNG" in capsys.readouterr().err


def test_the_backend_of_the_environment_is_not_needed_and_stays(tmp_path):
    code = """
import os, sys
from pathlib import Path
from typing import get_type_hints
from scpl_jax.analysis.figures import new_figure, save_figure
figure, (axis,) = new_figure()
axis.plot([1, 2])
save_figure(figure, Path(sys.argv[1]))
import matplotlib
print(os.environ["MPLBACKEND"], dict.__getitem__(matplotlib.rcParams, "backend"))
"""
    for name, kept in (("module://matplotlib_inline.backend_inline", None), ("svg", "svg")):
        env = {"MPLBACKEND": name, "PATH": "", "PYTHONPATH": str(Path(report.__file__).parent.parent)}
        env |= {"MPLCONFIGDIR": str(tmp_path)}
        command = [sys.executable, "-c", code, str(tmp_path / "figure.svg")]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        assert done.stdout.split()[0] == name
        assert kept is None or done.stdout.split()[1] == kept
        assert "<svg" in (tmp_path / "figure.svg").read_text()
