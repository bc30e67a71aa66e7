"""Where to cut a list of blocks into stages. A cut is a tuple: the blocks at which stages 1, 2, ... begin."""

import functools
import itertools
from collections.abc import Callable, Sequence


def check_num_stages(num_stages: int, num_blocks: int) -> None:
    """Refuse, by a ValueError, a number of stages that is not between 1 and the number of blocks."""
    if not 1 <= num_stages <= num_blocks:
        raise ValueError(
            f"the number of stages must be from 1 to {num_blocks}, the number of blocks that can be cut, "
            f"got {num_stages}"
        )


def check_cut(cut: Sequence[int], num_stages: int, num_blocks: int) -> tuple[int, ...]:
    """Positions given by hand: ascending, inside the network, one less than there are stages.

    Raises:
      ValueError: they are not.

    Example:
      >>> check_cut([2, 4, 5], 4, 6)
      (2, 4, 5)
    """
    check_num_stages(num_stages, num_blocks)
    positions = tuple(int(position) for position in cut)
    inside = all(0 < position < num_blocks for position in positions)
    ascending = all(a < b for a, b in itertools.pairwise(positions))
    if len(positions) != num_stages - 1 or not inside or not ascending:
        raise ValueError(
            f"a cut into {num_stages} stages needs {num_stages - 1} ascending positions between 1 and "
            f"{num_blocks - 1}, got {','.join(map(str, positions)) or 'none'}"
        )
    return positions


def even_cut(num_blocks: int, num_stages: int) -> tuple[int, ...]:
    """Equal numbers of blocks a stage; where that can't be, the first stages have one more.

    Raises:
      ValueError: more stages than blocks, or none.

    Example:
      >>> even_cut(6, 4)
      (2, 4, 5)
    """
    check_num_stages(num_stages, num_blocks)
    size, extra = divmod(num_blocks, num_stages)
    return tuple(stage * size + min(stage, extra) for stage in range(1, num_stages))


def balanced_cut(cost: Callable[[int, int], float], num_blocks: int, num_stages: int) -> tuple[int, ...]:
    """The cut whose most expensive stage is as cheap as possible; of several, the first in lexical order.

    Args:
      cost: cost(start, stop) of a stage of blocks start to stop - 1, local loss included, in any unit.
      num_blocks: number of blocks.
      num_stages: number of stages.

    Raises:
      ValueError: more stages than blocks, or none.

    Example:
      >>> weights = [1.0, 5.0, 1.0, 1.0]
      >>> balanced_cut(lambda start, stop: sum(weights[start:stop]), 4, 2)
      (2,)
    """
    check_num_stages(num_stages, num_blocks)

    @functools.cache
    def best(start: int, stages: int) -> tuple[float, tuple[int, ...]]:
        """(cost of the dearest stage, cut) for the blocks from ``start`` on."""
        if stages == 1:
            return cost(start, num_blocks), ()
        choices = []
        for stop in range(start + 1, num_blocks - stages + 2):
            rest, cut = best(stop, stages - 1)
            choices.append((max(cost(start, stop), rest), (stop, *cut)))
        return min(choices)

    return best(0, num_stages)[1]
