"""Options of the throughput experiment, and what they come to: a network, and a batch of noise for it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from flax import nnx

from scpl_jax.cli.building import cut_of, dtype_of, resolve_library
from scpl_jax.cli.methods import END_TO_END, Rule, RuleOptions, check_method, rule_of
from scpl_jax.cli.option_types import Count, Natural, OneOf, Positive, Unset, at_least, check_values, default
from scpl_jax.cli.recipes import RECIPES, with_recipe
from scpl_jax.cli.run_options import PRECISIONS
from scpl_jax.cli.task_options import TEXT_MODELS, TextOptions
from scpl_jax.cli.task_options import Options as ImageOptions
from scpl_jax.models import LIBRARIES, MODELS, build_model, lstm, paper_cut, transformer
from scpl_jax.objectives import HEADS
from scpl_jax.training.run_error import RunError

KNOWN = ("scpl", *END_TO_END)
# Recipes that say nothing but how stages learn; others would change the network of all methods.
RULES_BY_RECIPE = [name for name, options in RECIPES.items() if set(options) <= set(RuleOptions.__dataclass_fields__)]
METHODS = "scpl,scpl synchronous,bp,gpipe 2,gpipe 4,gpipe 8,gpipe 4 remat"
SINGLE = "scpl,scpl fused,bp"


@dataclasses.dataclass
class Options:
    """Compare the speed of SCPL, backpropagation and GPipe on the same network, cut and devices."""

    model: Annotated[str, OneOf((*MODELS, *TEXT_MODELS))] = "vgg8"
    """The network, as for the cifar and text experiments."""
    width: Positive = 0.25
    """Multiplier of the numbers of channels or hidden units."""
    image_size: Count = 32
    """Side of the images, in pixels."""
    length: Count = 64
    """Tokens of a text; for lstm and transformer, as the next four."""
    layers: Annotated[int, at_least(2)] = 4
    """Blocks besides the classifier, the embedding included."""
    vocabulary: Annotated[int, at_least(3)] = 30000
    """Number of token ids."""
    embedding_size: Count = 300
    """Length of the word vectors."""
    heads: Count = 6
    """Attention heads of the transformer."""
    batch_size: Count = 64
    """Images or texts a batch."""
    stages: Count = 2
    """Number of stages."""
    cut: str = "auto"
    """auto, even, paper, or the blocks at which stages begin, as 2,4."""
    head: Annotated[str, OneOf(HEADS)] = "mlp"
    """Projection head."""
    head_dims: Annotated[str | None, default("512,1024; linear: 1024")] = None
    """Layer sizes of the head, as 512,1024."""
    head_pool: Natural = 2
    """Average a feature map to this side before the projection head, in pixels; 0: not at all."""
    method: Annotated[str | None, default("scpl, bp and variants, GPipe")] = None
    """What is measured, separated by commas: scpl (needed for the ratios), bp, gpipe 4, or another rule of the cifar
    experiment's --method or a recipe; behind it synchronous, remat, or how stages share programs: fused or separate."""
    single: bool = False
    """On one device: share of the peak of its matrix products, compile time, memory; and the same in PyTorch, where it
    is installed (pip install 'scpl-jax[torch]')."""
    torch: bool = True
    """With --single: also measure PyTorch."""
    processes: Count = 1
    """Local processes to start; 1: this one, with the devices it has."""
    pin: bool = False
    """Give each process its own cores."""
    devices: Annotated[int | None, default("all")] = None
    """Devices to use, over all processes."""
    data_parallel: Count = 1
    """Devices a stage."""
    max_in_flight: Count = 8
    """Batches under way at a time in pipelined training."""
    steps: Count = 16
    """Training steps a measurement."""
    repeats: Count = 5
    """Measurements of each, taken in turn."""
    memory: bool = True
    """Also measure the peak memory of each method, in runs of their own."""
    precision: Annotated[str, OneOf(tuple(PRECISIONS))] = "float32"
    """Of matrix products, and with bfloat16 of activations; parameters and losses are always float32."""
    library: Annotated[str | None, OneOf(LIBRARIES), default("xla; with --single onednn where it can be had")] = None
    """What computes convolutions and matrix products on a CPU, as for the cifar experiment."""
    output: Unset[Path] = None
    """Write the numbers as JSON."""
    figure: Unset[Path] = None
    """Draw the speeds as SVG or PNG."""
    timeline: Unset[Path] = None
    """Draw the timelines of all methods as SVG or PNG."""
    only_memory_of: Unset[str] = None
    """Measure nothing but the memory of this method (used by the experiment itself)."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
          RunError: one sentence for the first bad option.
        """
        check_values(self)
        if self.model == "transformer" and self.embedding_size % self.heads:
            raise RunError(f"--heads {self.heads} does not divide --embedding-size {self.embedding_size}")
        for method in self.methods:
            words = method.split() or [""]
            numbers = [word for word in words[1:] if word.isdigit() and int(word) > 0]
            if words[0] not in (*END_TO_END, *RULES_BY_RECIPE):
                check_method(words[0], 1)
            local = {"synchronous", "fused", "separate"}
            allowed = {"bp": {"remat"}, "gpipe": {"remat", *numbers}}.get(words[0], local)
            if not set(words[1:]) <= allowed or {"fused", "separate"} <= set(words):
                raise RunError(f"--method {method!r} is unknown; choose from scpl, scpl synchronous, bp, gpipe 4, ...")
            if words[0] == "gpipe" and len(numbers) != 1:
                raise RunError(f"--method {method!r} needs a number of micro-batches, as gpipe 4")
        self.cut_positions()
        if self.single and (self.processes != 1 or self.devices not in (None, 1) or self.data_parallel != 1):
            raise RunError("--single is about one device; leave --processes, --devices and --data-parallel out")
        if self.single and any(method.split()[:1] == ["gpipe"] for method in self.methods):
            raise RunError("--single has one device, where GPipe has nothing to overlap; leave gpipe out of --method")
        if self.single and (self.figure is not None or self.timeline is not None):
            raise RunError("--single draws nothing; leave --figure and --timeline out")
        if self.pin and self.processes == 1:
            raise RunError("--pin needs --processes of at least 2")

    @property
    def methods(self) -> list[str]:
        """The methods, in order; scpl among them."""
        asked = [" ".join(name.split()) for name in (self.method or (SINGLE if self.single else METHODS)).split(",")]
        return list(dict.fromkeys(asked))

    @property
    def other_rules(self) -> list[str]:
        """The learning rules and recipes among the methods besides scpl, bp and gpipe."""
        return list(dict.fromkeys(name for method in self.methods if (name := method.split()[0]) not in KNOWN))

    @property
    def is_text(self) -> bool:
        """Whether it is texts that are classified, all of the same length, in two classes, or images in ten."""
        return self.model in TEXT_MODELS

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 2 if self.is_text else 10

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs of noise, float32 (N, H, W, 3) or int32 (N, L), and labels, int32 (N,).

        Example:
          >>> [array.shape for array in Options(batch_size=4).batch()]
          [(4, 32, 32, 3), (4,)]
        """
        rng, count = np.random.default_rng(0), self.batch_size
        if self.is_text:
            inputs = rng.integers(2, self.vocabulary, (count, self.length)).astype(np.int32)
        else:
            inputs = rng.normal(size=(count, self.image_size, self.image_size, 3)).astype(np.float32)
        return inputs, rng.integers(0, self.classes, count).astype(np.int32)

    def resolved_library(self) -> str:
        """What computes convolutions and matrix products, of the network and of auxiliary networks."""
        asked = self.library or (None if self.single else "xla")
        return resolve_library(asked, split=self.data_parallel > 1, precision=self.precision)

    def blocks(self, rngs: nnx.Rngs) -> list[nnx.Module]:
        """The network."""
        dtype, library = dtype_of(self.precision), self.resolved_library()
        common: dict[str, Any] = {"width": self.width, "dtype": dtype, "library": library, "rngs": rngs}
        if not self.is_text:
            return build_model(self.model, self.classes, image_shape=(self.image_size, self.image_size, 3), **common)
        common |= {"vocabulary": self.vocabulary, "layers": self.layers, "size": self.embedding_size}
        if self.model == "lstm":
            return lstm(self.classes, **common)
        return transformer(self.classes, heads=self.heads, **common)

    def rule(self, method: str) -> Rule:
        """The objectives of a learning rule, which is named as for ``--method``, or of a recipe.

        Example:
          >>> Options(head="linear").rule("scpl").objectives[0].head
          'linear'
        """
        asked: dict[str, Any] = {"stages": self.stages, "head": self.head, "head_dims": self.head_dims}
        asked["library"] = self.resolved_library()
        options = TextOptions(**asked) if self.is_text else ImageOptions(head_pool=self.head_pool, **asked)
        chosen = method in RULES_BY_RECIPE
        options = with_recipe(options, method) if chosen else dataclasses.replace(options, method=method)
        return rule_of(options, self.classes, dtype_of(self.precision))

    def cut_positions(self) -> str | Sequence[int]:
        """The cut, that of the paper by its positions."""
        return cut_of(self.cut, self.stages, lambda: (1, 2, 3) if self.is_text else paper_cut(self.model))

    def use_precision(self) -> None:
        """Let matrix products of float32 be as exact as asked for, in the whole process."""
        jax.config.update("jax_default_matmul_precision", PRECISIONS[self.precision])
