"""Stages on devices: placement, transfer, schedules, and the asynchronous executor.

What a step computes is in :mod:`scpl_jax.stages`; epochs, checkpoints and logs are in :mod:`scpl_jax.training`.
"""

from scpl_jax.pipeline.executor import Pipeline as Pipeline
from scpl_jax.pipeline.placement import place as place
from scpl_jax.pipeline.placement import sub_meshes as sub_meshes
from scpl_jax.pipeline.timeline import Span as Span
from scpl_jax.pipeline.timeline import Timeline as Timeline
from scpl_jax.pipeline.timeline import idle_shares as idle_shares
from scpl_jax.pipeline.whole_steps import PipelineBrokenError as PipelineBrokenError
from scpl_jax.pipeline.whole_steps import Skip as Skip
