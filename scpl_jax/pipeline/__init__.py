"""Stages on devices: placement, transfer, schedules, and the asynchronous executor."""

from scpl_jax.pipeline.executor import Pipeline as Pipeline
from scpl_jax.pipeline.placement import place as place
from scpl_jax.pipeline.placement import sub_meshes as sub_meshes
