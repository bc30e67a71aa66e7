"""What one stage minimises: a head and a loss, described by a frozen value object."""

from scpl_jax.objectives.base import Objective as Objective
from scpl_jax.objectives.classification import CrossEntropy as CrossEntropy
from scpl_jax.objectives.heads import HEADS as HEADS
from scpl_jax.objectives.heads import ProjectionHead as ProjectionHead
from scpl_jax.objectives.supcon import SupCon as SupCon
