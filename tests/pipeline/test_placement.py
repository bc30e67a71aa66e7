import dataclasses

import jax
import numpy as np
import pytest

from scpl_jax.pipeline import place, sub_meshes
from scpl_jax.pipeline.placement import _check_transfer


@dataclasses.dataclass(frozen=True)
class Device:
    """What placement looks at, for machines that are not here."""

    id: int
    process_index: int


@dataclasses.dataclass
class Mesh:
    devices: np.ndarray


def hosts(count, each):
    return [Device(host * each + i, host) for host in range(count) for i in range(each)]


def grid(meshes):
    return [[device.id for device in mesh.devices] for mesh in meshes]


@pytest.fixture
def plain_meshes(monkeypatch):
    monkeypatch.setattr("scpl_jax.pipeline.placement.Mesh", lambda devices, *_, **__: Mesh(devices))


def test_the_busiest_device_is_as_idle_as_possible():
    a, b, *_ = meshes = sub_meshes(jax.devices())
    assert place([5.0, 1.0, 1.0, 3.0], meshes[:2]) == (a, b, b, b)
    assert place([1.0, 1.0], meshes) == (a, b)
    assert place([1.0, 1.0, 1.0, 5.0], meshes[:2]) == (a, a, a, b)


@pytest.mark.usefixtures("plain_meshes")
@pytest.mark.parametrize(
    ("count", "each", "data_parallel", "layout", "expected"),
    [
        (1, 4, 1, "stages", [[0], [1], [2], [3]]),
        (1, 5, 2, "stages", [[0, 1], [2, 3]]),
        (2, 2, 1, "stages", [[0], [1], [2], [3]]),
        (2, 2, 2, "stages", [[0, 1], [2, 3]]),
        (2, 2, 2, "data", [[0, 2], [1, 3]]),
        (2, 4, 4, "data", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (1, 4, 2, "data", [[0, 1], [2, 3]]),
    ],
)
def test_sub_meshes(count, each, data_parallel, layout, expected):
    assert grid(sub_meshes(hosts(count, each), data_parallel, layout)) == expected


@pytest.mark.parametrize(
    ("devices", "data_parallel", "layout", "message"),
    [
        ([*hosts(1, 3), Device(3, 1)], 1, "stages", "3 in process 0, 1 in process 1"),
        (hosts(2, 2), 1, "data", "that 2 divides, got 1"),
        (hosts(1, 2), 3, "stages", "needs 3 devices a stage, there are 2"),
    ],
)
def test_what_cannot_be_divided_is_said(devices, data_parallel, layout, message):
    with pytest.raises(ValueError, match=message):
        sub_meshes(devices, data_parallel, layout)


@pytest.mark.parametrize(
    ("before", "behind", "fits"),
    [
        ([0], [0], True),
        ([0, 0], [0], True),
        ([0], [1], True),
        ([0, 0], [1, 1], True),
        ([0, 1], [0, 1], True),
        ([0, 1], [1, 0], True),
        ([0, 0], [1], False),
        ([0, 0], [0, 1], False),
        ([0, 1], [1, 1], False),
        ([0, 1], [1], False),
    ],
)
def test_between_which_devices_a_message_can_move(before, behind, fits):
    meshes = [Mesh(np.array([Device(i, process) for i, process in enumerate(row)])) for row in (before, behind)]
    if fits:
        _check_transfer(*meshes)
    else:
        with pytest.raises(ValueError, match="a message can't move from"):
            _check_transfer(*meshes)
