"""Text data sets by name: words, vocabularies, lengths to which texts are padded, word vectors.

What images need is in :mod:`scpl_jax.data.images`; what both need, order and batches among it, in :mod:`scpl_jax.data`.
"""
