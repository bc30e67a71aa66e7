"""What is written by public means of Orbax and TensorStore is what Orbax itself writes, by every process."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from scpl_jax.training.orbax_files import ArrayFolders

ARRAYS = {
    "params/kernel/value": np.arange(6, dtype=np.float32).reshape(2, 3),
    "params/half/value": np.asarray(jnp.ones(3, jnp.bfloat16)),
    "rest/key/value": np.arange(2, dtype=np.uint32),
    "rest/updates/value": np.asarray(np.int32(3)),
    "rest/zeros/value": np.zeros((2, 2), np.float32),
}
# When it was written.
TIMES = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def contents(folder):
    files = {path for path in folder.rglob("*") if path.is_file() and path.name not in TIMES}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def by_orbax(folder, **options):
    """Written by Orbax's own handler."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(ARRAYS))


def assert_same(found):
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize("process", [0, 1])
def test_every_process_writes_the_files_that_orbax_writes_alone(tmp_path, monkeypatch, caplog, process):
    by_orbax(tmp_path / "theirs", use_ocdbt=False)
    caplog.clear()
    # Nobody else is there: whoever waited for the other process would wait for long.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    folders = ArrayFolders()
    folders.write(tmp_path / "ours", ARRAYS)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert_same(folders.read(tmp_path / "ours"))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_what_orbax_wrote_is_read(tmp_path, use_ocdbt):
    by_orbax(tmp_path / "theirs", use_ocdbt=use_ocdbt)
    assert_same(ArrayFolders().read(tmp_path / "theirs"))


def test_an_array_without_values_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^an array without values can't be saved: b/value$"):
        ArrayFolders().write(tmp_path / "a", {"b/value": np.zeros((0, 3), np.float32)})


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads by /proc")
def test_writing_again_and_again_starts_no_more_threads(tmp_path):
    many = {f"{number}": np.ones(1000, np.float32) for number in range(100)}
    folders = ArrayFolders()
    folders.write(tmp_path / "first", many)
    before = len(os.listdir("/proc/self/task"))
    for number in range(5):
        folders.write(tmp_path / str(number), many)
    print(before, len(os.listdir("/proc/self/task")))
    assert len(os.listdir("/proc/self/task")) <= before + 8
