"""Image data sets by name, their decoding, and augmentation on the device.

What texts need is in :mod:`scpl_jax.data.text`; what both need, order and batches among it, in :mod:`scpl_jax.data`.
"""
