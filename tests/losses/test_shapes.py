import jax.numpy as jnp
import jaxtyping
import pytest

import scpl_jax as scpl


@pytest.mark.parametrize("loss", [scpl.supervised_contrastive, scpl.cross_entropy])
@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (jnp.ones((4, 3)), jnp.zeros(5, int)),
        (jnp.ones((4, 3, 2)), jnp.zeros(4, int)),
        (jnp.ones((4, 3), int), jnp.zeros(4, int)),
        (jnp.ones((4, 3)), jnp.zeros(4)),
    ],
    ids=["other length", "three axes", "integer features", "floating labels"],
)
def test_other_shapes_and_dtypes_than_documented_are_refused(loss, features, labels):
    with pytest.raises((jaxtyping.TypeCheckError, ValueError)):
        loss(features, labels)
