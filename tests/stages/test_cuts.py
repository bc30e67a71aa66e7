import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpl_jax.stages import balanced_cut, even_cut
from scpl_jax.stages.cuts import check_cut


def stage_costs(weights, cut):
    bounds = (0, *cut, len(weights))
    return [sum(weights[a:b]) for a, b in itertools.pairwise(bounds)]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.data())
def test_balanced_cut_is_as_good_as_the_best_of_all_cuts(weights, data):
    stages = data.draw(st.integers(1, len(weights)))
    cut = balanced_cut(lambda _, a, b: sum(weights[a:b]), len(weights), stages)
    best = min(max(stage_costs(weights, c)) for c in itertools.combinations(range(1, len(weights)), stages - 1))
    assert len(cut) == stages - 1
    assert max(stage_costs(weights, cut)) == best


@given(st.integers(1, 60), st.data())
def test_even_cut_sizes_differ_by_at_most_one(blocks, data):
    stages = data.draw(st.integers(1, blocks))
    sizes = stage_costs([1] * blocks, even_cut(blocks, stages))
    assert len(sizes) == stages
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("stages", [0, -1, 7])
def test_a_wrong_number_of_stages_is_named(stages):
    with pytest.raises(ValueError, match=f"from 1 to 6.*got {stages}"):
        even_cut(6, stages)


@pytest.mark.parametrize("cut", [(2,), (2, 2, 5), (4, 2, 5), (0, 2, 4), (2, 4, 6), (2, 3, 4, 5)])
def test_wrong_positions_are_refused(cut):
    with pytest.raises(ValueError, match="needs 3 ascending positions between 1 and 5"):
        check_cut(cut, 4, 6)
