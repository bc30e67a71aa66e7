"""Runnable modules: ``python -m scpl_jax.experiments.NAME``."""
