"""What a command sets before JAX starts."""

import pytest

from scpl_jax.cli import environment
from scpl_jax.cli.command_line import run

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
    monkeypatch.setattr(environment, "is_tested_jaxlib", lambda: tested)
    assert environment.avoid_fusion_emitters() == (after is not None and OFF in after)
    assert environment.os.environ.get("XLA_FLAGS") == after


def test_every_command_chooses_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(environment, "is_tested_jaxlib", lambda: True)
    seen = []
    assert run(lambda _: seen.append(environment.os.environ["XLA_FLAGS"]) or 0, []) == 0
    assert seen == [OFF]
