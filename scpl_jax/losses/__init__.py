"""Losses: arrays in, one scalar out. No module, no device, no data."""

from scpl_jax.losses.classification import cross_entropy as cross_entropy
from scpl_jax.losses.information import information_regularisation as information_regularisation
from scpl_jax.losses.similarity import adjusted_cosine as adjusted_cosine
from scpl_jax.losses.similarity import similarity_matching as similarity_matching
from scpl_jax.losses.similarity import spatial_deviation as spatial_deviation
from scpl_jax.losses.supcon import supervised_contrastive as supervised_contrastive
