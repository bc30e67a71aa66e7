"""What the methods would cost on machines that are not here: devices, links and schedules, step by step.

Times come from measurements or from the compiler's estimate, by the caller; nothing here runs a network.
"""

from scpl_jax.simulation.devices import Link as Link
from scpl_jax.simulation.simulator import Simulation as Simulation
from scpl_jax.simulation.simulator import StageTimes as StageTimes
from scpl_jax.simulation.simulator import simulate as simulate
from scpl_jax.simulation.simulator import speedup_table as speedup_table
