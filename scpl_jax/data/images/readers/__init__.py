"""Readers of image data sets, one file for each family of formats; :mod:`scpl_jax.data.images.image_sets` chooses."""
