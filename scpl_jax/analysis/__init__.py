"""What the methods would cost on machines that are not here."""

from scpl_jax.analysis.machine import Link as Link
from scpl_jax.analysis.simulate import Simulation as Simulation
from scpl_jax.analysis.simulate import StageTimes as StageTimes
from scpl_jax.analysis.simulate import simulate as simulate
from scpl_jax.analysis.simulate import speedup_table as speedup_table
