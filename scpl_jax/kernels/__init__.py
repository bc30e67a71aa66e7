"""Arithmetic of layers in forms that are fast on the CPU, or that keep less: functions, and the layers that need them.

Networks, and layers that are only put together of such functions, are in :mod:`scpl_jax.models`. No loss, no stage.
"""
