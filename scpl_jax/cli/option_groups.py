"""The options that training runs of all kinds have, by group, besides those of the rules."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from scpl_jax.cli.option_types import Count, Natural, NotNegative, OneOf, Positive, Share, Switch, Unset, default
from scpl_jax.cli.parsing import Group
from scpl_jax.models import INITIALISERS, LIBRARIES

# What --precision means for matrix products of float32; float32 is float32 on a GPU too.
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Group):
    """What is trained, and how it is cut into stages."""

    title: ClassVar[str] = "network"

    model: str = ""
    """Name of the network."""
    width: Annotated[Positive | None, default("1.0")] = None
    """Multiplier of the numbers of hidden units."""
    init: Annotated[str, OneOf(INITIALISERS)] = "torch"
    """Initial distributions."""
    stages: Count = 4
    """Number of stages, from 1 to the number of blocks."""
    cut: str = "auto"
    """auto (the most expensive stage as cheap as possible), even, paper, or the blocks where stages begin, as 2,4,5."""
    costs: Literal["estimate", "measured"] = "estimate"
    """What cut and placement rest on: the compiler's estimate, or measured times of each block on this machine."""


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Group):
    """How long and how fast it is trained."""

    title: ClassVar[str] = "training"

    epochs: Unset[Count] = None
    """Number of epochs."""
    batch_size: Unset[Count] = None
    """Examples a batch."""
    lr: Positive = 1e-3
    """Learning rate at the start."""
    end_lr: NotNegative = 1e-5
    """Learning rate at the end of the cosine schedule."""
    lr_every: Literal["step", "epoch"] = "step"
    """When the learning rate changes; every epoch as in the released PyTorch code."""
    optimizer: str = "adam"
    """Any Optax optimizer that needs only a learning rate, by name."""
    precision: Annotated[str, OneOf(tuple(PRECISIONS))] = "float32"
    """Of matrix products, and with bfloat16 of activations; parameters and losses are always float32."""
    seed: Natural = 0
    """Seed of initial values, order and augmentation."""
    runs: Count = 1
    """Number of runs with seeds SEED, SEED + 1, ...; the results give mean and standard deviation."""
    skip_non_finite: bool = True
    """Leave out a stage's update where its loss or gradient is NaN or infinite; the other stages are not affected."""
    max_skipped: Natural = 10
    """End the run, saved, when a stage has left out this many updates in a row; 0: never."""


@dataclasses.dataclass(frozen=True)
class DataOptions(Group):
    """What it is trained and tested on."""

    title: ClassVar[str] = "data"

    dataset: str = "auto"
    """Name of the data set."""
    data_dir: Unset[Path] = None
    """Where the data set's files lie; read only."""
    label_noise: Share = 0.0
    """Share of the training labels drawn again from all classes, from 0 to 1."""
    limit_train: Unset[Count] = None
    """Train on the first N examples only."""
    limit_test: Unset[Count] = None
    """Test on the first N examples only."""
    cache_dir: Annotated[Path | None, default("~/.cache/scpl_jax")] = None
    """Where prepared data and compiled programs are kept."""


@dataclasses.dataclass(frozen=True)
class DeviceOptions(Group):
    """Where it is computed; a run may be spread over several processes."""

    title: ClassVar[str] = "device"

    library: Annotated[
        str | None,
        OneOf(LIBRARIES),
        default("onednn where it can be had, one device computes a stage and the data did not come with this package"),
    ] = None
    """What computes convolutions and matrix products on a CPU; onednn (on x86-64 under Linux) has faster steps, but its
    programs are compiled at every start."""
    devices: Annotated[Count | None, default("all")] = None
    """Number of devices to use, over all processes."""
    data_parallel: Count = 1
    """Devices a stage, over which its batch is split."""
    across_hosts: Literal["stages", "data"] = "stages"
    """What is spread over the processes of a run: stages (each in one process) or data (each over all of them)."""
    fuse: Switch = None
    """Compile stages that share devices into one program: yes (also --fuse alone), no or auto, which is on CPUs for up
    to four stages that hand on at most 12 MiB a batch to one another, but not with --timeline, and not with dascpl,
    whose stages join one after another (with yes, all of a program's stages join with its first one)."""
    max_in_flight: Count = 8
    """Batches under way at a time; 1 is synchronous. The results do not depend on it."""
    coordinator_address: Unset[str] = None
    """HOST:PORT of process 0 of a run of several processes; scpl_jax.launch sets it."""
    num_processes: Unset[int] = None
    """Number of processes of the run."""
    process_id: Unset[int] = None
    """Number of this process, from 0."""
    cluster: bool = False
    """Join the processes that a cluster (SLURM, MPI, Kubernetes) has started."""


@dataclasses.dataclass(frozen=True)
class OutputOptions(Group):
    """What is kept of it, and where."""

    title: ClassVar[str] = "output"

    out_dir: Annotated[Path | None, default("runs/EXPERIMENT/DATE-TIME")] = None
    """Run directory."""
    resume: bool = False
    """Continue the run in --out-dir from its last checkpoint, with its own options."""
    save_every: Annotated[Count | None, default("every epoch")] = None
    """Steps between checkpoints."""
    keep: Count = 2
    """How many of the newest checkpoints are kept; the best one is kept besides."""
    probe_examples: Annotated[
        Natural | None, default("2000 where stages can't tell classes themselves, otherwise 0")
    ] = None
    """Training examples to which a nearest-neighbour classifier and a linear probe of each stage's features are fitted
    when the training is over; 0: none."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    norms_every: Count = 100
    """Steps between gradient norms of every layer in TensorBoard."""
    timeline: bool = False
    """Measure when each stage works, for 50 steps, and write timeline.json (for Perfetto) and timeline.svg."""
    profile: bool = False
    """Write a trace of ten steps by the JAX profiler to profile/ in the run directory."""
