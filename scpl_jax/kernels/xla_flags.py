"""What ``XLA_FLAGS`` of the environment says, the only way to set some of XLA's options for all programs of a process.

JAX has options of its compiler for single programs only. XLA reads the variable when JAX compiles for the first time;
an unknown flag ends the process, so nothing is added for a jaxlib that this was not tested with.
"""

import os

from scpl_jax.kernels.onednn import is_tested_jaxlib

# XLA's option, for all programs in the environment or for one as an option of its compiler.
FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"


def _flags() -> list[str]:
    return os.environ.get("XLA_FLAGS", "").split()


def is_without_fusion_emitters() -> bool:
    """Whether XLA generates code for CPUs as it did before its fusion emitters.

    Example:
      >>> is_without_fusion_emitters() in (True, False)
      True
    """
    return f"--{FUSION_EMITTERS}=false" in _flags()


def avoid_fusion_emitters() -> bool:
    """Let XLA generate code for CPUs as it did before its fusion emitters; whether it does.

    For the networks here it then compiles in less time, down to half, and most steps are faster
    (experiments/single/README.md has the numbers). To be called before JAX compiles anything. What ``XLA_FLAGS`` says
    of it already, stays.
    """
    if not any(FUSION_EMITTERS in flag for flag in _flags()) and is_tested_jaxlib():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{FUSION_EMITTERS}=false".strip()
    return is_without_fusion_emitters()


def asks_for_cpu_devices() -> bool:
    """Whether a number of emulated devices is asked for, by ``--xla_force_host_platform_device_count``.

    Example:
      >>> asks_for_cpu_devices() in (True, False)
      True
    """
    return any("host_platform_device_count" in flag for flag in _flags())
