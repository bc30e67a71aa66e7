"""What runs and networks tell: gradient paths and norms, features, results of runs, and figures of them.

Import the modules by name. What machines would do that are not here is in :mod:`scpl_jax.simulation`.
"""
