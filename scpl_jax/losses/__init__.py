"""Losses as pure functions: arrays in, one scalar out.

Heads and everything else with parameters are in :mod:`scpl_jax.objectives`. No module, no device, no data.
"""

from scpl_jax.losses.contrastive_loss import supervised_contrastive as supervised_contrastive
from scpl_jax.losses.similarity import adjusted_cosine as adjusted_cosine
from scpl_jax.losses.similarity import information_regularisation as information_regularisation
from scpl_jax.losses.similarity import similarity_matching as similarity_matching
from scpl_jax.losses.similarity import spatial_deviation as spatial_deviation
from scpl_jax.losses.softmax import cross_entropy as cross_entropy
