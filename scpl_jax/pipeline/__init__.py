"""Stages on devices: placement, transfer, and the asynchronous executor."""

from scpl_jax.pipeline.executor import Pipeline as Pipeline
from scpl_jax.pipeline.placement import place as place
