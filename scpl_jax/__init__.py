"""Train deep networks in stages with local supervised-contrastive losses, in JAX and Flax."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from scpl_jax import models as models
from scpl_jax.losses import cross_entropy as cross_entropy
from scpl_jax.losses import supervised_contrastive as supervised_contrastive
from scpl_jax.moved import find_moved as _find_moved
from scpl_jax.objectives import Associated as Associated
from scpl_jax.objectives import CrossEntropy as CrossEntropy
from scpl_jax.objectives import InfoReg as InfoReg
from scpl_jax.objectives import LocalClassifier as LocalClassifier
from scpl_jax.objectives import Mixture as Mixture
from scpl_jax.objectives import Objective as Objective
from scpl_jax.objectives import PredSim as PredSim
from scpl_jax.objectives import Reconstruction as Reconstruction
from scpl_jax.objectives import SupCon as SupCon
from scpl_jax.pipeline import Pipeline as Pipeline
from scpl_jax.stages import Stage as Stage
from scpl_jax.stages import decouple as decouple

try:
    __version__ = _version("scpl-jax")
except _PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"

_find_moved()
