"""The settings in which the tests of numbers run."""

import jax
import portable
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.kernels import onednn
from scpl_jax.stages import gradients


def names(*arguments):
    said = []
    found = [setting[0] for setting in portable.settings(*arguments, say=said.append)]
    return found, [line.partition(":")[0] for line in said]


def test_there_are_eight_settings_or_those_that_the_machine_has():
    found, said = names(2, True, True, True)
    assert len(set(found)) == 8
    assert said == []
    assert found[-1] == "AVX-512 hidden, onednn, 2 cores"
    found, said = names(2, False, True, True)
    assert found == [f"as it is, {how}" for how in ("xla, 1 core", "xla, 2 cores", "onednn, 1 core", "onednn, 2 cores")]
    assert said == ["AVX-512 is not here or hidden already"]
    assert names(1, False, False, True)[0] == ["as it is, xla, 1 core"]
    assert names(1, True, False, True)[1] == ["oneDNN is not in this jaxlib", "there is one core"]
    assert names(4, False, False, False)[0] == ["as it is, xla, 4 cores"]
    assert names(1, True, True, False)[1] == ["cores can't be chosen on this system"]


def test_a_setting_that_fails_is_named_and_the_others_run(monkeypatch, capsys):
    ran = []

    def run(environment, cores, arguments):
        ran.append(environment)
        return (1, "a test\n== 1 failed, 3 passed in 2s ==\n") if len(ran) == 1 else (0, "== 4 passed in 2s ==\n")

    monkeypatch.setattr(portable, "run", run)
    assert portable.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    outcomes = [line.partition(": ")[2] for line in lines if " in 0 s: " in line]
    assert outcomes == ["FAILED in 0 s: 1 failed, 3 passed in 2s"] + ["passed in 0 s: 4 passed in 2s"] * (len(ran) - 1)
    assert lines[-2:] == ["a test", "== 1 failed, 3 passed in 2s =="]
    monkeypatch.setattr(portable, "run", lambda *_: (0, "== 4 passed in 2s =="))
    assert portable.main([]) == 0


def calls(stage, batch):
    """Of oneDNN, in the program of a stage's gradients."""
    step = jax.jit(lambda params, x, y: gradients(stage, params, stage.rest, x, y)[0])
    return step.lower(stage.params, *batch).as_text().count("__onednn$")


@pytest.mark.skipif(not onednn.available(), reason="no oneDNN in this jaxlib")
@pytest.mark.parametrize(("hidden", "expected"), [("avx2", False), ("AVX2_VNNI", False), ("AVX512_CORE", True)])
def test_the_environment_hides_avx512_from_onednn(monkeypatch, hidden, expected):
    monkeypatch.setattr(onednn.Path, "read_text", lambda self: "flags : avx2 avx512f\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", hidden)
    assert onednn.has_avx512.__wrapped__() is expected


@pytest.mark.numeric
def test_networks_compute_by_the_library_of_the_setting(small_vgg, batch, default_library):
    """Convolutions of the blocks, and products of the head and the classifier."""
    (stage,) = scpl.decouple(small_vgg(), 1, scpl.SupCon(head_dims=(8, 6)), batch[0], nnx.Rngs(1))
    found = calls(stage, batch)
    assert found >= 8 if default_library == "onednn" else found == 0
