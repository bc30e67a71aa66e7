"""Options of the throughput experiment, and what they come to."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from scpl_jax.benchmarks.workloads import TEXT_MODELS, Workload, images, texts
from scpl_jax.cli.image_options import Options as ImageOptions
from scpl_jax.cli.library import resolve_library
from scpl_jax.cli.methods import END_TO_END, check_method
from scpl_jax.cli.run_options import PRECISIONS, integers
from scpl_jax.cli.text_options import TextOptions
from scpl_jax.models import paper_cut
from scpl_jax.training.run_error import RunError

KNOWN = ("scpl", *END_TO_END)
METHODS = "scpl,scpl synchronous,bp,gpipe 2,gpipe 4,gpipe 8,gpipe 4 remat"
SINGLE = "scpl,scpl fused,bp"


@dataclasses.dataclass
class Options:
    """Compare the speed of SCPL, backpropagation and GPipe on the same network, cut and devices."""

    model: str = "vgg8"
    """Network, as for the cifar experiment, or lstm or transformer."""
    width: float = 0.25
    """Multiplier of the numbers of channels or hidden units."""
    image_size: int = 32
    """Side of the images, in pixels."""
    length: int = 64
    """Tokens of a text; for lstm and transformer, as the next four."""
    layers: int = 4
    """Blocks besides the classifier, the embedding included."""
    vocabulary: int = 30000
    """Number of token ids."""
    embedding_size: int = 300
    """Length of the word vectors."""
    heads: int = 6
    """Attention heads of the transformer."""
    batch_size: int = 64
    """Images or texts a batch."""
    stages: int = 2
    """Number of stages."""
    cut: str = "auto"
    """auto, even, paper, or the blocks at which stages begin, as 2,4."""
    head: str = "mlp"
    """Projection head: identity, linear, mlp, mlp-bn or simsiam."""
    head_dims: str | None = None
    """Layer sizes of the head, as 512,1024. Default: 512,1024; linear: 1024."""
    head_pool: int = 2
    """Average a feature map to this side before the projection head, in pixels; 0: not at all."""
    method: str | None = None
    """What is measured, separated by commas: scpl (needed for the ratios), bp, gpipe 4, or another rule of the cifar
    experiment's --method; behind it synchronous, remat, or how stages share programs: fused or separate. Default: scpl,
    bp and variants, GPipe."""
    single: bool = False
    """On one device: share of the peak of its matrix products, compile time, memory; and the same in PyTorch, where it
    is installed (pip install 'scpl-jax[torch]')."""
    torch: bool = True
    """With --single: also measure PyTorch."""
    processes: int = 1
    """Local processes to start; 1: this one, with the devices it has."""
    pin: bool = False
    """Give each process its own cores."""
    devices: int | None = None
    """Devices to use, over all processes. Default: all."""
    data_parallel: int = 1
    """Devices a stage."""
    max_in_flight: int = 8
    """Batches under way at a time in pipelined training."""
    steps: int = 16
    """Training steps a measurement."""
    repeats: int = 5
    """Measurements of each, taken in turn."""
    memory: bool = True
    """Also measure the peak memory of each method, in runs of their own."""
    precision: str = "float32"
    """float32, tf32 or bfloat16 (parameters and losses in float32)."""
    library: str | None = None
    """What computes convolutions and matrix products on a CPU: xla or onednn, as for the cifar experiment. Default:
    with --single onednn where it can be had, otherwise xla."""
    output: Path | None = None
    """Write the numbers as JSON."""
    figure: Path | None = None
    """Draw the speeds as SVG or PNG."""
    timeline: Path | None = None
    """Draw the timelines of all methods as SVG or PNG."""
    only_memory_of: str | None = None
    """Measure nothing but the memory of this method (used by the experiment itself)."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
          RunError: one sentence for the first bad option.
        """
        positive = ("batch_size", "stages", "processes", "steps", "repeats", "max_in_flight", "data_parallel")
        least = dict.fromkeys((*positive, "image_size", "length", "embedding_size", "heads"), 1)
        for name, low in {**least, "layers": 2, "vocabulary": 3}.items():
            if getattr(self, name) < low:
                raise RunError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if self.model == "transformer" and self.embedding_size % self.heads:
            raise RunError(f"--heads {self.heads} does not divide --embedding-size {self.embedding_size}")
        if self.precision not in PRECISIONS:
            raise RunError(f"--precision must be one of {', '.join(PRECISIONS)}, got {self.precision}")
        for method in self.methods:
            words = method.split() or [""]
            numbers = [word for word in words[1:] if word.isdigit() and int(word) > 0]
            if words[0] not in END_TO_END:
                check_method(words[0], 1)
            local = {"synchronous", "fused", "separate"}
            allowed = {"bp": {"remat"}, "gpipe": {"remat", *numbers}}.get(words[0], local)
            if not set(words[1:]) <= allowed or {"fused", "separate"} <= set(words):
                raise RunError(f"--method {method!r} is unknown; choose from scpl, scpl synchronous, bp, gpipe 4, ...")
            if words[0] == "gpipe" and len(numbers) != 1:
                raise RunError(f"--method {method!r} needs a number of micro-batches, as gpipe 4")
        if self.cut == "paper" and self.stages != 4:
            raise RunError(f"--cut paper is defined for 4 stages, got --stages {self.stages}; use auto or even")
        if self.cut not in ("auto", "even", "paper"):
            integers(self.cut, "--cut")
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
        """The learning rules among the methods besides scpl, bp and gpipe."""
        return list(dict.fromkeys(name for method in self.methods if (name := method.split()[0]) not in KNOWN))

    def workload(self) -> Workload:
        """The network and the batch that are measured."""
        asked = self.library or (None if self.single else "xla")
        library = resolve_library(asked, split=self.data_parallel > 1, precision=self.precision)
        computed: dict[str, Any] = {"dtype": self.dtype, "library": library}
        if self.model not in TEXT_MODELS:
            heads = ImageOptions(head=self.head, head_dims=self.head_dims, head_pool=self.head_pool)
            return images(self.model, self.width, self.batch_size, heads, self.image_size, **computed)
        names = ("layers", "vocabulary", "embedding_size", "heads", "head", "head_dims")
        others = {name: getattr(self, name) for name in names}
        return texts(self.model, self.width, self.batch_size, TextOptions(**others), self.length, **computed)

    def cut_positions(self) -> str | tuple[int, ...]:
        """The cut, that of the paper by its positions."""
        if self.cut == "paper":
            return (1, 2, 3) if self.model in TEXT_MODELS else paper_cut(self.model)
        return self.cut if self.cut in ("auto", "even") else integers(self.cut, "--cut") or ()

    @property
    def dtype(self) -> Any:
        """The dtype of the computation; None for float32."""
        return jnp.bfloat16 if self.precision == "bfloat16" else None

    def use_precision(self) -> None:
        """Let matrix products of float32 be as exact as asked for, in the whole process."""
        jax.config.update("jax_default_matmul_precision", PRECISIONS[self.precision])
