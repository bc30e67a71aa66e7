"""The training loop, checkpoints, metrics and the run directory.

Which network, data and rule a run has is decided in :mod:`scpl_jax.cli` and :mod:`scpl_jax.experiments`.
"""

from scpl_jax.training.checkpoints import CheckpointStore as CheckpointStore
from scpl_jax.training.interrupt import Interrupt as Interrupt
from scpl_jax.training.loop import Plan as Plan
from scpl_jax.training.loop import Result as Result
from scpl_jax.training.loop import train as train
from scpl_jax.training.optimizers import build_optimizer as build_optimizer
from scpl_jax.training.optimizers import cosine_schedule as cosine_schedule
from scpl_jax.training.probes import probe_stages as probe_stages
from scpl_jax.training.reporting import Reporter as Reporter
from scpl_jax.training.run_dir import RunDirectory as RunDirectory
from scpl_jax.training.run_error import RunError as RunError
