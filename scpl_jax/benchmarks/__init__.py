"""Commands that measure time, memory and arithmetic: ``python -m scpl_jax.benchmarks.NAME``, and what they share.

Nothing here trains to an accuracy; that is done by :mod:`scpl_jax.experiments`.
"""
