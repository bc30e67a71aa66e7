"""Readers of text data sets, one file for each layout; :mod:`scpl_jax.data.text.text_sets` chooses."""
