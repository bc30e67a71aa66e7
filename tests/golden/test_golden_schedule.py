"""The learning-rate schedule of the released code, number for number."""

import jax
import numpy as np
import pytest
from closeness import assert_close
from torch_layout import Golden

from scpl_jax.training import cosine_schedule


@pytest.mark.parametrize("x64", [False, True])
def test_cosine_schedule(x64):
    golden = Golden("lr_schedule")
    with jax.enable_x64(x64):
        for case in range(len(golden.meta["cases"])):
            base, end, steps = (golden[f"in/{name}_{case}"].item() for name in ("base_lr", "end_lr", "max_step"))
            expected = golden[f"out/lr_{case}"]
            assert len(expected) == steps + 1
            schedule = cosine_schedule(base, end, steps)
            rates = [schedule(step) for step in range(steps + 1)]
            assert_close(np.asarray(rates), expected, 1e-12 if x64 else 1e-6)
            coarse = cosine_schedule(base, end, steps, every=3)  # as once an epoch of three steps
            rates = [coarse(step) for step in range(steps + 1)]
            assert_close(np.asarray(rates), np.repeat(expected[::3], 3)[: steps + 1], 1e-12 if x64 else 1e-6)
