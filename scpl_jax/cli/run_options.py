"""The options that training runs of all kinds have, with their checks; each field is one option of the command line."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from scpl_jax.cli.methods import END_TO_END, check_method
from scpl_jax.cli.option_types import Switch
from scpl_jax.cli.option_types import flag as flag
from scpl_jax.data.paths import expand
from scpl_jax.models import LIBRARIES
from scpl_jax.training.run_error import RunError

# What --precision means for matrix products of float32; float32 is float32 on a GPU too.
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
# Options that change nothing in the numbers, or only where files lie: a resumed run may have other values.
FREE_ON_RESUME = frozenset(
    {
        "out_dir",
        "resume",
        "data_dir",
        "data_file",
        "test_file",
        "cache_dir",
        "max_in_flight",
        "devices",
        "data_parallel",
        "across_hosts",
        "fuse",
        "coordinator_address",
        "num_processes",
        "process_id",
        "cluster",
        "timeline",
        "save_every",
        "keep",
        "profile",
        "tensorboard",
        "norms_every",
        "max_skipped",
    }
)


@dataclasses.dataclass
class RunOptions:
    """What the experiments have in common."""

    method: str = "scpl"
    """scpl (local supervised-contrastive losses), bp (backpropagation; over several devices naive model parallelism),
    gpipe (backpropagation pipelined by micro-batches), early-exit (a classifier in every stage), al (associated
    learning), predsim (local prediction and similarity matching), inforeg (information regularisation), dascpl (scpl
    with a classifier that reads every stage, and stages that join one after another); or a mixture of supcon, ce,
    predsim and inforeg such as supcon+0.5*ce, or one for each stage with commas between them."""
    dataset: str = "auto"
    """Name of the data set."""
    data_dir: Path | None = None
    """Where the data set's files lie; read only."""
    model: str = ""
    """Name of the network."""
    width: float | None = None
    """Multiplier of the numbers of hidden units. Default: 1.0."""
    init: str = "torch"
    """Initial distributions: torch, lecun or he."""
    stages: int = 4
    """Number of stages, from 1 to the number of blocks."""
    cut: str = "auto"
    """auto (the dearest stage as cheap as possible), even, paper, or the blocks at which stages begin, as 2,4,5."""
    costs: str = "estimate"
    """What cut and placement rest on: estimate (the compiler's) or measured (times of each block on this machine)."""
    head: str = "mlp"
    """Projection head: identity, linear, mlp, mlp-bn or simsiam."""
    head_dims: str | None = None
    """Layer sizes of the head, as 512,1024. Default: 512,1024; linear: 1024."""
    join_epochs: str | None = None
    """dascpl: the epoch from which each stage is trained, as 1,3,5,7. Default: spread over the first half."""
    al_codes: str = "plain"
    """al: how codes of the label are learned: plain (tanh, cross-entropy of the label) or released (as in its authors'
    code, for images by sigmoids and squares, which takes much longer to learn)."""
    exit_hidden: str | None = None
    """Hidden layer sizes of the local classifiers of early-exit and ce, as 512. Default: none, they are linear."""
    exit_threshold: float | None = None
    """At evaluation an example stops at the first exit whose confidence is at least this, from 0 to 1."""
    exit_patience: int | None = None
    """At evaluation an example stops when so many exits in a row agreed with the one before."""
    exit_similarity: float = 0.95
    """Cosine similarity of the probabilities from which on two exits agree."""
    probe_examples: int | None = None
    """Training examples to which a nearest-neighbour classifier and a linear probe of each stage's features are fitted
    when the training is over; 0: none. Default: 2000 where stages can't tell classes themselves, otherwise 0."""
    temperature: float = 0.1
    """Temperature of the contrastive loss."""
    count_anchor: bool = False
    """Divide the contrastive loss by the positives and the anchor, as the released PyTorch code does."""
    classifier_gradient: bool = False
    """Let the classifier's gradient into the last stage; dascpl: that of every local classifier into its stage."""
    epochs: int | None = None
    """Number of epochs."""
    batch_size: int | None = None
    """Examples a batch."""
    lr: float = 1e-3
    """Learning rate at the start."""
    end_lr: float = 1e-5
    """Learning rate at the end of the cosine schedule."""
    lr_every: str = "step"
    """When the learning rate changes: step, or epoch as in the released PyTorch code."""
    optimizer: str = "adam"
    """Any Optax optimizer that needs only a learning rate, by name."""
    label_noise: float = 0.0
    """Share of the training labels drawn again from all classes, from 0 to 1."""
    limit_train: int | None = None
    """Train on the first N examples only."""
    limit_test: int | None = None
    """Test on the first N examples only."""
    precision: str = "float32"
    """float32, tf32 or bfloat16; parameters and losses are always float32."""
    library: str | None = None
    """What computes convolutions and matrix products on a CPU: xla, or onednn (on x86-64 under Linux, faster steps; but
    the programs are compiled at every start). Default: onednn where it can be had, one device computes a stage and the
    data did not come with this package; otherwise xla."""
    seed: int = 0
    """Seed of initial values, order and augmentation."""
    runs: int = 1
    """Number of runs with seeds SEED, SEED + 1, ...; the results give mean and standard deviation."""
    devices: int | None = None
    """Number of devices to use, over all processes. Default: all."""
    data_parallel: int = 1
    """Devices a stage, over which its batch is split."""
    across_hosts: str = "stages"
    """What is spread over the processes of a run: stages (each in one process) or data (each over all of them)."""
    fuse: Switch = None
    """Compile stages that share devices into one program: yes (also --fuse alone), no or auto, which is on CPUs for up
    to four stages that hand on at most 12 MiB a batch to one another, but not with --timeline, and not with dascpl,
    whose stages join one after another (with yes, all of a program's stages join with its first one)."""
    micro_batches: int | None = None
    """gpipe: parts that a batch is worked through in. Default: 4."""
    remat: bool = False
    """bp, gpipe: compute activations again in the backward pass instead of keeping them (not for the last device)."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0 of a run of several processes; scpl_jax.launch sets it."""
    num_processes: int | None = None
    """Number of processes of the run."""
    process_id: int | None = None
    """Number of this process, from 0."""
    cluster: bool = False
    """Join the processes that a cluster (SLURM, MPI, Kubernetes) has started."""
    max_in_flight: int = 8
    """Batches under way at a time; 1 is synchronous. The results do not depend on it."""
    out_dir: Path | None = None
    """Run directory. Default: runs/EXPERIMENT/DATE-TIME."""
    resume: bool = False
    """Continue the run in --out-dir from its last checkpoint, with its own options."""
    save_every: int | None = None
    """Steps between checkpoints. Default: every epoch."""
    keep: int = 2
    """How many of the newest checkpoints are kept; the best one is kept besides."""
    cache_dir: Path | None = None
    """Where prepared data and compiled programs are kept. Default: ~/.cache/scpl_jax."""
    skip_non_finite: bool = True
    """Leave out a stage's update where its loss or gradient is NaN or infinite; the other stages are not affected."""
    max_skipped: int = 10
    """End the run, saved, when a stage has left out so many updates in a row; 0: never."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    norms_every: int = 100
    """Steps between gradient norms of every layer in TensorBoard."""
    timeline: bool = False
    """Measure when each stage works, for 50 steps, and write timeline.json (for Perfetto) and timeline.svg."""
    profile: bool = False
    """Write a trace of ten steps by the JAX profiler to profile/ in the run directory."""

    def choices(self) -> dict[str, tuple[str, ...]]:
        """What options of the experiment itself may be."""
        return {}

    def least(self) -> dict[str, int]:
        """The least values of options of the experiment itself."""
        return {}

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
          RunError: one sentence for the first bad option.
        """
        choices: dict[str, tuple[str, ...]] = {
            "precision": tuple(PRECISIONS),
            "lr_every": ("step", "epoch"),
            "costs": ("estimate", "measured"),
            "across_hosts": ("stages", "data"),
            "al_codes": ("plain", "released"),
            **self.choices(),
        }
        if self.library is not None:
            choices["library"] = LIBRARIES
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise RunError(f"{flag(name)} {getattr(self, name)} is unknown; choose {' or '.join(allowed)}")
        check_method(self.method, self.stages)
        least = {
            **self.least(),
            "stages": 1,
            "epochs": 1,
            "batch_size": 1,
            "limit_train": 1,
            "limit_test": 1,
            "runs": 1,
            "devices": 1,
            "data_parallel": 1,
            "micro_batches": 1,
            "exit_patience": 1,
            "max_in_flight": 1,
            "save_every": 1,
            "keep": 1,
            "norms_every": 1,
            "seed": 0,
            "probe_examples": 0,
            "max_skipped": 0,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise RunError(f"{flag(name)} must be at least {low}, got {value}")
        for name in ("width", "temperature", "lr"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise RunError(f"{flag(name)} must be a number greater than 0, got {value}")
        if not (self.end_lr >= 0 and math.isfinite(self.end_lr)):
            raise RunError(f"--end-lr must be a number of at least 0, got {self.end_lr}")
        if not 0 <= self.label_noise <= 1:
            raise RunError(f"--label-noise must lie between 0 and 1, got {self.label_noise}")
        if self.micro_batches is not None and self.method != "gpipe":
            raise RunError(f"--micro-batches is for --method gpipe, got --method {self.method}")
        if self.remat and self.method not in END_TO_END:
            raise RunError("--remat is for --method bp and gpipe: with local losses a stage keeps no activations")
        if self.al_codes != "plain" and self.method != "al":
            raise RunError(f"--al-codes is for --method al, got --method {self.method}")
        integers(self.head_dims, "--head-dims")
        if min(integers(self.exit_hidden, "--exit-hidden") or (1,)) < 1:
            raise RunError(f"--exit-hidden must be sizes of at least 1, got {self.exit_hidden}")
        joins = integers(self.join_epochs, "--join-epochs")
        if joins is not None:
            if self.method != "dascpl":
                raise RunError(f"--join-epochs is for --method dascpl, got --method {self.method}")
            if len(joins) != self.stages or joins[0] != 1 or list(joins) != sorted(joins):
                raise RunError(
                    f"--join-epochs must be {self.stages} ascending epochs from 1, one a stage, got {self.join_epochs}"
                )
        for name in ("exit_threshold", "exit_similarity"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise RunError(f"{flag(name)} must be greater than 0 and at most 1, got {value}")
        if self.cut not in ("auto", "even", "paper"):
            integers(self.cut, "--cut")


AnyOptions = TypeVar("AnyOptions", bound=RunOptions)


def fill_in(options: AnyOptions, defaults: Mapping[str, Any]) -> AnyOptions:
    """The options with these values where none was given.

    Example:
      >>> fill_in(RunOptions(epochs=3), {"epochs": 20, "batch_size": 128}).epochs
      3
    """
    missing = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **missing)


def as_arguments(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as a command line: true is the option alone, false the option with ``no-``, None is left out.

    Example:
      >>> as_arguments({"batch_size": 3, "cut": None, "memory": False})
      ('--batch-size', '3', '--no-memory')
    """
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif value is not None:
            words += [flag(name), str(value)]
    return tuple(words)


def integers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Numbers separated by commas, None for None.

    Raises:
      RunError: something else.

    Example:
      >>> integers("2,4,5", "--cut")
      (2, 4, 5)
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        also = "auto, even, paper or " if option == "--cut" else ""
        raise RunError(f"{option} takes {also}whole numbers separated by commas, got {text!r}") from None


def to_json(options: RunOptions) -> dict[str, Any]:
    """The options as JSON values."""
    values = dataclasses.asdict(options)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def from_json(kind: type[AnyOptions], values: dict[str, Any]) -> AnyOptions:
    """The inverse of :func:`to_json`: options of the experiment that has this kind.

    Raises:
      RunError: an unknown option or a value of another type.
      DataError: a path begins with a home directory that is not known.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise RunError(f"config.json has the unknown option {unknown[0]!r}; it was written by another version")
    loaded: dict[str, Any] = {}
    for name, value in values.items():
        kinds = typing.get_args(hints[name]) or (hints[name],)
        if Path in kinds and isinstance(value, str):
            value = expand(value, flag(name))
        accepted = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
            raise RunError(f"config.json has {value!r} for {name}, which is not of the right type")
        loaded[name] = value
    return kind(**loaded)


def contradiction(asked: RunOptions, saved: RunOptions) -> str | None:
    """The first option that a resumed run can't change, as a sentence; None if there is none."""
    for field in dataclasses.fields(saved):
        old, new = getattr(saved, field.name), getattr(asked, field.name)
        if field.name not in FREE_ON_RESUME and old != new:
            return (
                f"{flag(field.name)} {new} contradicts the run to be resumed, which has {old}; "
                "leave the option out, or start in a new --out-dir"
            )
    return None
