"""What a command sets before JAX starts."""

import os
import subprocess
import sys

import jax
import pytest

from scpl_jax.cli.command_line import run
from scpl_jax.kernels import xla_flags

OFF, ON = "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_use_fusion_emitters=true"


@pytest.mark.parametrize(
    ("before", "tested", "after"),
    [
        (None, True, OFF),
        ("--xla_force_host_platform_device_count=2", True, f"--xla_force_host_platform_device_count=2 {OFF}"),
        (ON, True, ON),
        (OFF, True, OFF),
        (None, False, None),
        ("--xla_force_host_platform_device_count=2", False, "--xla_force_host_platform_device_count=2"),
    ],
)
def test_the_code_generator_is_chosen_unless_the_user_did_or_jaxlib_is_not_known(monkeypatch, before, tested, after):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(xla_flags, "is_tested_jaxlib", lambda: tested)
    assert xla_flags.avoid_fusion_emitters() == (after is not None and OFF in after)
    assert os.environ.get("XLA_FLAGS") == after


def test_every_command_chooses_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(xla_flags, "is_tested_jaxlib", lambda: True)
    seen = []
    assert run(lambda _: seen.append(os.environ["XLA_FLAGS"]) or 0, []) == 0
    assert seen == [OFF]


def test_this_xla_has_the_flag():
    """It ends a process whose flags it does not know."""
    code = "import jax; jax.jit(lambda x: x + 1)(1.0)"
    variables = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = {
        flag: subprocess.run([sys.executable, "-c", code], env={**variables, "XLA_FLAGS": flag}, capture_output=True)
        for flag in (OFF, f"--no_{OFF.removeprefix('--')}")
    }
    assert [one.returncode == 0 for one in done.values()] == [True, False]


def test_a_single_program_can_be_compiled_with_the_emitters():
    program = jax.jit(lambda x: x + 1).lower(1.0)
    assert program.compile({xla_flags.FUSION_EMITTERS: True})(1.0) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        program.compile({"no_" + xla_flags.FUSION_EMITTERS: True})
