"""Losses: arrays in, one scalar out. No module, no device, no data."""

from scpl_jax.losses.classification import cross_entropy as cross_entropy
from scpl_jax.losses.supcon import supervised_contrastive as supervised_contrastive
