"""Commands that train: ``python -m scpl_jax.experiments.cifar``, ``.text``, and ``.reproduce``, for tables of them.

How options are read is in :mod:`scpl_jax.cli`; commands that only measure are in :mod:`scpl_jax.benchmarks`.
"""
