"""What one stage minimises: a head and a loss, described by a frozen value object.

The formulas are in :mod:`scpl_jax.losses`; the gradient is taken, and the stage updated, in :mod:`scpl_jax.stages`.
"""

from scpl_jax.objectives.associated import Associated as Associated
from scpl_jax.objectives.auxiliary import AUXILIARIES as AUXILIARIES
from scpl_jax.objectives.auxiliary import AuxiliaryNetwork as AuxiliaryNetwork
from scpl_jax.objectives.auxiliary import Blocks as Blocks
from scpl_jax.objectives.auxiliary import Conv as Conv
from scpl_jax.objectives.auxiliary import Dgl as Dgl
from scpl_jax.objectives.base import Accompanied as Accompanied
from scpl_jax.objectives.base import Exit as Exit
from scpl_jax.objectives.base import Objective as Objective
from scpl_jax.objectives.base import Place as Place
from scpl_jax.objectives.classification import CrossEntropy as CrossEntropy
from scpl_jax.objectives.classification import LocalClassifier as LocalClassifier
from scpl_jax.objectives.heads import HEADS as HEADS
from scpl_jax.objectives.heads import ProjectionHead as ProjectionHead
from scpl_jax.objectives.inforeg import InfoReg as InfoReg
from scpl_jax.objectives.local import LocalObjective as LocalObjective
from scpl_jax.objectives.mixture import Mixture as Mixture
from scpl_jax.objectives.predsim import PredSim as PredSim
from scpl_jax.objectives.reconstruction import Reconstruction as Reconstruction
from scpl_jax.objectives.supcon import SupCon as SupCon
