"""The key-value store of JAX's coordination service, for which JAX has no public name.

By it the processes of a run tell each other small values. What JAX has in public for that are programs on devices: they
would get between those of a step, and threads would have to call them in the same order everywhere. A run of one
process needs no store; a run of several is refused where JAX has none under the names that are known here.
"""

import functools
import logging
from typing import Any

import jax

_LOG = logging.getLogger(__name__)
_NEEDED = ("key_value_set", "blocking_key_value_get", "key_value_dir_get", "key_value_delete")
# Releases that this was tested with, from the first to before the second.
_TESTED = ((0, 10, 0), (0, 11, 0))


@functools.cache
def key_value_store() -> Any:
    """The client of this process, which has joined the others.

    Raises:
      ValueError: JAX has none, or it is without what is needed.
    """
    version, (oldest, newest) = jax.__version__, (".".join(map(str, one)) for one in _TESTED)
    try:
        from jax._src import distributed

        client = distributed.global_state.client
        missing = [name for name in _NEEDED if not hasattr(client, name)]
    except (ImportError, AttributeError) as error:
        client, missing = None, [str(error)]
    if missing:
        raise ValueError(
            f"JAX {version} has no store of values between processes as it is known here ({', '.join(missing)}); run a "
            f"single process, or install jax from {oldest} to before {newest}"
        )
    if not _TESTED[0] <= jax.__version_info__[:3] < _TESTED[1]:
        _LOG.warning("several processes were tested with jax from %s to before %s, not %s", oldest, newest, version)
    return client
