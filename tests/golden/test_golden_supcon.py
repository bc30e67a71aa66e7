"""The contrastive loss of the released code, number for number."""

import jax
import numpy as np
import pytest
from torch_layout import Golden, assert_gradients, assert_losses

from scpl_jax.losses import supervised_contrastive

CASES = ["allunique", "balanced", "edge_norms", "n2_diff", "n2_same", "oneclass", "singleton", "zero_row"]


@pytest.mark.numeric
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case):
    golden = Golden(f"supcon_{case}")
    x, y = golden["in/x"], golden["in/y"].astype(np.int32)

    @jax.jit
    def losses(x):
        return [
            jax.value_and_grad(supervised_contrastive)(x, y, float(temperature), count_anchor=True)
            for temperature in golden["in/temperature"]
        ]

    for k, (loss, gradient) in enumerate(losses(x)):
        assert_losses(case, loss, golden["out/loss"][k])
        assert np.isfinite(gradient).all()
        if case == "zero_row":  # the reference divides the gradient of the zero row by 1e-12
            continue
        expected = golden["grad_in/x"][k]
        if case == "n2_same":  # zero but for rounding
            assert_gradients(case, gradient, expected, scale=2e-2)
            continue
        for row in range(len(x)):  # rows differ by orders of magnitude where their lengths do
            assert_gradients(f"{case}, row {row}", gradient[row], expected[row])
