"""Which library computes on the CPU: the option, its default, and what a program by oneDNN means for the rest."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx
from jax._src import compilation_cache

import scpl_jax as scpl
from scpl_jax.cli.building import resolve_library, with_library
from scpl_jax.cli.command_line import run
from scpl_jax.cli.task_options import Options
from scpl_jax.experiments.cifar import main
from scpl_jax.kernels import onednn
from scpl_jax.models import build_model
from scpl_jax.models.layers import conv, linear
from scpl_jax.models.transformer import Attention
from scpl_jax.stages.cost import module_cost
from scpl_jax.training import RunError

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="no oneDNN in this jaxlib")


@needs_onednn
def test_the_default_is_onednn_but_for_short_runs_and_where_it_cannot_be_had(monkeypatch):
    assert resolve_library(None, dataset="cifar10") == "onednn"
    assert [resolve_library(None, dataset=name) for name in ("digits", "synthetic", "generated")] == ["xla"] * 3
    assert resolve_library(None, dataset="cifar10", split=True) == "xla"
    assert resolve_library(None, dataset="cifar10", precision="bfloat16") == "xla"
    assert resolve_library("onednn", dataset="digits") == "onednn"
    monkeypatch.setattr(onednn, "available", lambda: False)
    assert resolve_library(None, dataset="cifar10") == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert resolve_library(None, dataset="cifar10") == "xla"


def test_what_can_not_be_had_is_refused_in_one_sentence(monkeypatch):
    with pytest.raises(RunError, match="--library mkl is unknown; choose xla or onednn"):
        resolve_library("mkl")
    with pytest.raises(RunError, match="--library mkl is unknown; choose xla or onednn"):
        Options(library="mkl").check()  # before any data is loaded
    monkeypatch.setattr(onednn, "available", lambda: False)
    with pytest.raises(RunError, match=r"--library onednn: the library onednn needs Linux .*; choose xla$"):
        resolve_library("onednn")
    monkeypatch.setattr(onednn, "available", lambda: True)
    with pytest.raises(RunError, match=r"--library onednn needs one device a stage, .*; choose xla$"):
        resolve_library("onednn", split=True)
    with pytest.raises(RunError, match=r"--library onednn is for float32, got --precision bfloat16; choose xla$"):
        resolve_library("onednn", precision="bfloat16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(RunError, match=r"is for CPUs, the devices here are of the kind gpu; choose xla$"):
        resolve_library("onednn")


@needs_onednn
def test_a_resumed_run_keeps_its_library():
    options = Options(dataset="cifar10")
    assert with_library(options, "cifar10", None).library == "onednn"
    assert with_library(options, "cifar10", {"resolved": {"library": "xla"}}).library == "xla"
    assert with_library(options, "digits", {"resolved": {"library": "onednn"}}).library == "onednn"
    assert with_library(options, "cifar10", {"resolved": {}}).library == "xla"  # from before there was a choice
    split = dataclasses.replace(options, data_parallel=2)
    with pytest.raises(RunError, match="one device a stage"):
        with_library(split, "cifar10", {"resolved": {"library": "onednn"}})


@pytest.mark.runs
@pytest.mark.usefixtures("onednn_at_any_size")
@needs_onednn
def test_a_whole_run_and_its_continuation(tmp_path, cache, capsys):
    path = tmp_path / "run"
    arguments = [
        "--dataset", "synthetic", "--width", "0.03", "--head-dims", "8,8", "--batch-size", "32", "--augment", "none",
        "--limit-train", "64", "--limit-test", "40", "--stages", "2", "--epochs", "1", "--library", "onednn",
    ]  # fmt: skip
    status = run(main, [*arguments, "--cache-dir", str(cache), "--out-dir", str(path)])
    assert status == 0, capsys.readouterr().err
    config = json.loads((path / "config.json").read_text())
    assert config["resolved"]["library"] == "onednn"
    assert run(main, ["--out-dir", str(path), "--resume", "--library", "xla"]) == 2
    assert "--library xla contradicts the run to be resumed, which has onednn" in capsys.readouterr().err
    assert run(main, ["--out-dir", str(path), "--resume"]) == 0


@pytest.mark.usefixtures("onednn_at_any_size")
@needs_onednn
@pytest.mark.parametrize("options", [{}, {"fuse": True}, {"devices": 2}], ids=str)
def test_a_pipeline_trains_alike_and_does_not_try_to_keep_the_programs(options, monkeypatch):
    put = "put_executable_and_time"
    monkeypatch.setattr(compilation_cache, put, getattr(compilation_cache, put).__wrapped__)  # as it is outside tests
    devices = jax.devices()[: options.pop("devices", 1)]
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(8, 16, 16, 3)).astype(np.float32), rng.integers(0, 10, 8).astype(np.int32)
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    losses = {}
    for library in ("xla", "onednn"):
        blocks = build_model("vgg8", 10, width=0.05, image_shape=(16, 16, 3), library=library, rngs=nnx.Rngs(0))
        stages = scpl.decouple(blocks, 2, scpl.SupCon(head_dims=(8, 6)), images, nnx.Rngs(1))
        pipeline = scpl.Pipeline(stages, optax.sgd(0.01), devices, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metrics = [pipeline.train_step(images, labels) for _ in range(2)]
        losses[library] = [[float(m["loss"]) for m in row] for row in metrics]
    assert_close(losses["onednn"], losses["xla"], 1e-5)
    assert before == jax.config.jax_persistent_cache_min_compile_time_secs


@pytest.mark.usefixtures("onednn_at_any_size")
@needs_onednn
@pytest.mark.parametrize("kind", ["few channels", "Winograd", "linear", "attention"])
def test_what_a_module_costs_does_not_depend_on_the_library(kind):
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def cost(library):
        rngs = nnx.Rngs(0)
        if kind == "linear":
            return module_cost(linear(30, 40, rngs=rngs, library=library), shape(4, 8, 30))
        if kind == "attention":
            return module_cost(Attention(12, 3, rngs=rngs, library=library), shape(4, 8, 12), jnp.ones((4, 8), bool))
        channels = 8 if kind == "few channels" else 64
        return module_cost(conv(channels, channels, 3, rngs=rngs, library=library), shape(16, 32, 32, channels))

    assert cost("onednn") == cost("xla")


def test_a_convolution_costs_all_its_images():
    costs = [
        module_cost(conv(64, 64, 3, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((n, 32, 32, 64), jnp.float32)).operations
        for n in (1, 64)
    ]
    assert costs[1] == pytest.approx(64 * costs[0])
