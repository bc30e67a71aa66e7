"""From blocks and an objective to stages with a gradient boundary between them, and one stage's step as pure functions.

Nothing here knows of devices: stages are laid out and run in :mod:`scpl_jax.pipeline`.
"""

from scpl_jax.stages.cuts import balanced_cut as balanced_cut
from scpl_jax.stages.cuts import even_cut as even_cut
from scpl_jax.stages.decouple import Stage as Stage
from scpl_jax.stages.decouple import decouple as decouple
from scpl_jax.stages.step import StageState as StageState
from scpl_jax.stages.step import evaluate as evaluate
from scpl_jax.stages.step import gradients as gradients
from scpl_jax.stages.step import initial_state as initial_state
from scpl_jax.stages.step import layer_norms as layer_norms
from scpl_jax.stages.step import stage_loss as stage_loss
from scpl_jax.stages.step import train_step as train_step
