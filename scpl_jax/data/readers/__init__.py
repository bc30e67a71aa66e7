"""Readers, one file for each family of formats; `scpl_jax.data.registry` chooses among them."""
