"""From a command line to objects of the library: options and their checks, rules by name, the process's surroundings.

No command is here: training runs are in :mod:`scpl_jax.experiments`, measurements in :mod:`scpl_jax.benchmarks`.
"""
