"""The learning rules of ``--method``: one module a rule, with its options, its help and its objectives.

A new rule is a module here and a row in :mod:`scpl_jax.cli.methods`.
"""
