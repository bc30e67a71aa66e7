"""The experiments that measure: that they run, and that their numbers hang together; never how fast anything is."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from scpl_jax.benchmarks import contrastive, convolutions, measure, memory, throughput
from scpl_jax.benchmarks.single import _matrix_flops
from scpl_jax.cli.command_line import run
from scpl_jax.kernels import onednn

TINY = ["--width", "0.03", "--batch-size", "8", "--image-size", "16", "--steps", "1", "--repeats", "1"]


@pytest.mark.runs
def test_throughput_compares_methods_on_the_devices_there_are(tmp_path, capsys):
    out, chart, lanes = (tmp_path / name for name in ("out.json", "out.svg", "lanes.svg"))
    options = [*TINY, "--no-memory", "--method", "scpl,bp,gpipe 2,al", "--devices", "2"]
    files = ["--output", str(out), "--figure", str(chart), "--timeline", str(lanes)]
    assert run(throughput.main, [*options, *files]) == 0
    found = json.loads(out.read_text())
    assert list(found["methods"]) == ["scpl", "bp", "gpipe 2", "al"]
    for row in found["methods"].values():
        assert row["images_per_second"] == pytest.approx(8 / row["seconds_a_step"]["median"])
        assert row["seconds_a_step"]["fastest"] > 0
        assert all(0 <= share < 1 for share in row["idle_share"].values())
    seconds = {name: row["seconds_a_step"]["median"] for name, row in found["methods"].items()}
    assert found["speedup_over_bp"] == pytest.approx(seconds["bp"] / seconds["scpl"])
    assert found["speedup_over_best_gpipe"] == pytest.approx(seconds["gpipe 2"] / seconds["scpl"])
    assert len(found["alone_seconds"]) == 2
    slowest = found["slowest_stage_alone_seconds"]["median"]
    assert found["pipeline_efficiency"]["median"] == pytest.approx(slowest / seconds["scpl"])
    # Every local rule's stages are measured alone, those that are sent codes along with the message, too.
    alone = {name: len(row.get("alone_seconds", [])) for name, row in found["methods"].items()}
    assert alone == {"scpl": 2, "bp": 0, "gpipe 2": 0, "al": 2}
    for row in (found["methods"]["scpl"], found["methods"]["al"]):
        slowest = row["slowest_stage_alone_seconds"]["median"]
        assert slowest == pytest.approx(max(one["median"] for one in row["alone_seconds"]))  # one repeat
    assert set(found["methods"]["bp"]["task_seconds"]) == {"0", "1"}
    assert found["message_bytes"][0] > 0
    assert chart.stat().st_size > 1000
    assert lanes.stat().st_size > 1000
    assert "scpl over bp" in capsys.readouterr().out


@pytest.mark.processes
def test_one_device_is_compared_with_its_own_peak(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert run(throughput.main, ["--single", *TINY, "--output", str(out), "--no-torch"]) == 0
    found = json.loads(out.read_text())
    assert list(found["methods"]) == ["scpl", "scpl fused", "bp"]
    for row in found["methods"].values():
        rate = row["flops_a_step"] / row["seconds_a_step"]["median"]
        assert row["share_of_peak"] == pytest.approx(rate / max(found["products_flops_per_second"].values()))
        assert row["compile_seconds"] > 0
        assert row["peak_memory_bytes"] > row["memory_before_bytes"] > 1e6
    assert list(found["input"]) == [f"input, {kind} augmentation" for kind in ("basic", "strong")]
    fastest = min(row["seconds_a_step"]["median"] for row in found["methods"].values())
    for row in found["input"].values():
        expected = fastest / row["seconds_a_step"]["median"]
        assert row["times_as_fast_as_training"]["median"] == pytest.approx(expected)
    ratio = found["speed_ratios"]["scpl to bp"]["median"]
    seconds = {name: row["seconds_a_step"]["median"] for name, row in found["methods"].items()}
    assert ratio == pytest.approx(seconds["bp"] / seconds["scpl"])
    assert found["peak_flops_per_second"] == max(found["products_flops_per_second"].values())
    by = ["product by XLA", *(["product by oneDNN"] if onednn.available() else [])]
    assert list(found["products_flops_per_second"]) == by
    assert "PyTorch is not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "2"], "--single is about one device; leave --processes"),
        (["--data-parallel", "2"], "--single is about one device"),
        (["--figure", "x.svg"], "--single draws nothing"),
        (["--method", "scpl,gpipe 4"], "--single has one device, where GPipe has nothing to overlap"),
    ],
)
def test_what_one_device_cannot_show_is_refused(capsys, options, message):
    assert run(throughput.main, ["--single", *TINY, *options]) == 2
    assert message in capsys.readouterr().err


def test_operations_are_those_of_products_and_convolutions():
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def convolve(stride, x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=numbers)

    for stride, side in ((1, 8), (2, 4)):
        forward = 2 * (2 * side * side * 5) * (3 * 3 * 3)
        call = functools.partial(convolve, stride)
        assert _matrix_flops(call, images, kernel) == forward

        def loss(x, w, call=call):
            return jnp.sum(jnp.square(call(x, w)))

        assert _matrix_flops(jax.grad(loss, 1), images, kernel) == 2 * forward
        assert _matrix_flops(jax.grad(loss, (0, 1)), images, kernel) == pytest.approx(3 * forward)
    square = jnp.ones((4, 4))

    def several(x):
        x, _ = jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=7)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    assert _matrix_flops(several, square) == (7 + 2) * 2 * 4**3


def test_operations_that_no_result_needs_do_not_count():
    """A derivative of one's own gives both gradients, also where one of them is all that is asked for."""

    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))

    def loss(a, b):
        return jnp.sum(jnp.square(product(a, b)))

    assert _matrix_flops(jax.grad(loss, (0, 1)), a, b) == 3 * 2 * 3 * 4 * 5
    assert _matrix_flops(jax.grad(loss, 1), a, b) == 2 * 2 * 3 * 4 * 5


@pytest.mark.runs
def test_throughput_of_texts_counts_tokens(tmp_path, capsys):
    options = ["--model", "lstm", "--width", "0.03", "--embedding-size", "6", "--length", "10", "--vocabulary", "50"]
    options += ["--layers", "3", "--batch-size", "4", "--steps", "1", "--repeats", "1", "--no-memory"]
    out = tmp_path / "out.json"
    assert run(throughput.main, [*options, "--method", "scpl,bp,fast", "--output", str(out)]) == 0
    found = json.loads(out.read_text())
    for row in found["methods"].values():
        assert row["texts_per_second"] == pytest.approx(4 / row["seconds_a_step"]["median"])
        assert row["tokens_per_second"] == pytest.approx(10 * row["texts_per_second"])
    # The sequence, its mask and the summary, at least.
    assert found["message_bytes"][0] >= 4 * 10 * (6 * 4 + 1)
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.processes
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores, one a process")
def test_throughput_in_processes_measures_memory_too(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "scpl_jax.benchmarks.throughput", *TINY, "--processes", "2", "--method", "scpl"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([*command, "--pin", "--output", str(out)], env=environment, check=True, timeout=200)
    found = json.loads(out.read_text())
    assert len(found["methods"]["scpl"]["peak_memory_bytes"]) == 2
    assert [len(stage["devices"]) for stage in found["stages"]] == [1, 1]
    assert found["stages"][0]["devices"] != found["stages"][1]["devices"]


@pytest.mark.processes
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores, one a process")
def test_timelines_of_processes_hold_all_of_the_time(tmp_path):
    library = "onednn" if onednn.available() else "xla"
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "scpl_jax.benchmarks.throughput", "--width", "0.25", "--batch-size", "32"]
    command += ["--stages", "2", "--processes", "2", "--pin", "--method", "scpl,bp", "--steps", "1", "--repeats", "1"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}
    shares = {}
    for _ in range(3):  # a machine that does other things meanwhile makes gaps
        run_ = [*command, "--library", library, "--no-memory", "--output", str(out)]
        subprocess.run(run_, env=environment, check=True, timeout=200)
        for name, row in json.loads(out.read_text())["methods"].items():
            assert any("update" in tasks for tasks in row["task_seconds"].values())
            busy = [1 - idle for idle in row["idle_share"].values()]
            assert len(busy) == 2
            # The slowest stage never waits for another; of backpropagation one stage works at a time, but for updates.
            shares[name] = max(busy) if name == "scpl" else sum(busy)
        if all(0.8 <= share <= 1.2 for share in shares.values()):
            return
    assert all(0.8 <= share <= 1.2 for share in shares.values()), shares


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "sgd"], "--method sgd is unknown"),
        (["--method", "paper"], "--method paper is unknown"),  # a recipe that is about the network, too
        (["--method", "gpipe"], "needs a number of micro-batches"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--model", "lstm", "--layers", "1"], "--layers must be at least 2, got 1"),
        (["--model", "transformer", "--heads", "7"], "--heads 7 does not divide --embedding-size 300"),
        (["--pin"], "--pin needs --processes"),
        (["--precision", "float16"], "--precision float16 is unknown; choose float32, tf32 or bfloat16"),
    ],
)
def test_wrong_options_of_throughput(options, message, capsys):
    assert run(throughput.main, options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_a_recipe_is_measured_with_its_auxiliary_networks_by_the_library_of_the_network():
    library = "onednn" if onednn.available() else "xla"  # where it can be had, not the one it would be without a word
    options = throughput.Options(stages=3, library=library, method="scpl,fast")
    options.check()
    assert options.other_rules == ["fast"]
    first = options.rule("fast").objectives[0]
    assert (first.aux.side, first.aux.layers["library"]) == (4, library)
    assert options.rule("early-exit").objectives[0].aux is None


@pytest.mark.parametrize("option", ["--output", "--figure", "--timeline"])
def test_a_file_that_cannot_be_written_is_found_before_anything_is_measured(option, tmp_path, capsys):
    # With --steps 0 as well: the first check that fails is this one.
    file = tmp_path / "no" / ("file.json" if option == "--output" else "file.svg")
    assert run(throughput.main, [option, str(file), "--steps", "0"]) == 2
    assert f"there is no folder {tmp_path / 'no'}" in capsys.readouterr().err
    folder = tmp_path / file.name
    folder.mkdir()
    assert run(throughput.main, [option, str(folder), "--steps", "0"]) == 2
    assert f"{option} {folder} is a folder" in capsys.readouterr().err


@pytest.mark.processes
def test_memory_of_backpropagation_grows_with_depth_and_that_of_local_losses_does_not(tmp_path):
    """By the compiler's account, which does not depend on the machine's load."""
    out = tmp_path / "out.json"
    options = ["--depths", "2,6", "--channels", "8", "--batch-size", "8", "--image-size", "16", "--steps", "1"]
    assert run(memory.main, [*options, "--output", str(out), "--figure", str(tmp_path / "out.svg")]) == 0
    table = {(row["method"], row["depth"]): row for row in json.loads(out.read_text())["table"]}
    assert table["bp", 6]["temporary_bytes"] > 2 * table["bp", 2]["temporary_bytes"]
    assert table["scpl", 6]["temporary_bytes"] == pytest.approx(table["scpl", 2]["temporary_bytes"], rel=0.05)
    assert all(row["peak_bytes"] >= 0 for row in table.values())


@pytest.mark.runs
def test_both_forms_of_the_contrastive_loss_are_measured(tmp_path, capsys):
    output = tmp_path / "found.json"
    options = ["--rows", "20,300", "--largest", "600", "--features", "8", "--repeats", "2", "--output", str(output)]
    assert run(contrastive.main, options) == 0
    found = json.loads(output.read_text())
    assert [row["rows"] for row in found["times"]] == [20, 300]
    for row in found["times"]:
        assert row["ratio"] > 0
        assert row["largest_difference_of_loss"] < 1e-5
        assert row["largest_difference_of_gradient"] < 1e-5
    assert [(row["rows"], row["form"]) for row in found["memory"]] == [
        (n, form) for n in (20, 300, 600) for form in ("plain", "blocks")
    ]
    assert [row["measured_bytes"] is None for row in found["memory"]] == [False, False, False, False, True, False]
    assert found["memory"][-2]["temporary_bytes"] > 600**2 * 4


@pytest.mark.parametrize("options", [["--rows", "1"], ["--rows", "x"], ["--repeats", "0"], ["--largest", "1"]])
def test_wrong_options_of_contrastive(options, capsys):
    assert run(contrastive.main, options) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_every_form_of_a_convolution_is_measured(tmp_path, capsys):
    options = ["--shapes", "8,4,6 4,6,2", "--batch-size", "2", "--chunks", "1,2", "--repeats", "1", "--no-torch"]
    assert run(convolutions.main, [*options, "--output", str(tmp_path / "found.json")]) == 0
    assert "2 images of 4 x 4, 6 to 2 channels" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "found.json").read_text())["table"]
    assert first["flops"] == 2 * 9 * 2 * 8 * 8 * 4 * 6
    assert first["seconds"].keys() == second["seconds"].keys()
    for each in convolutions.PASSES:
        assert {f"{each}, {form}" for form in ("XLA", "Winograd 1 MiB", "Winograd 2 MiB")} <= first["seconds"].keys()


@pytest.mark.parametrize(
    "options",
    [["--shapes", "8,4"], ["--shapes", "7,4,4"], ["--shapes", ""], ["--shapes", "8,x,4"], ["--chunks", "0"]],
)
def test_wrong_options_of_convolutions(options, capsys):
    assert run(convolutions.main, options) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_wrong_options_of_memory(capsys):
    assert run(memory.main, ["--depths", "0,4"]) == 2
    assert "--depths must be numbers of at least 1, got 0,4" in capsys.readouterr().err


def test_steps_too_short_to_be_measured_are_repeated_more_often(monkeypatch):
    """A clock by which some seconds go to something else in the first short run."""
    clock = iter([0.0, 9.0, 0.0, 5.0, 0.0, 4.0, 0.0, 10.0])  # start and end of runs of 4, 6, 4, 8 steps

    class Machine:
        counted = 0
        max_in_flight = 8

        def train_step(self, inputs, labels):
            self.counted += 1

        def wait(self):
            pass

    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    machine = Machine()
    assert measure.seconds_a_step(machine, None, None, 2, 3) == 6 / 4
    assert (machine.counted, machine.max_in_flight) == (4 + 6 + 4 + 8, 3)
