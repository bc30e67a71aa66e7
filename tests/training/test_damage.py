"""Damaged checkpoints are noticed and passed over; full disks and vanished directories lose nothing that was saved."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.training import CheckpointStore, Reporter, RunDirectory, RunError
from scpl_jax.training.checkpoints import Progress
from scpl_jax.training.writing import Lock, damage, whole_file


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Checkpoints of steps 1, 2 and 3, and the pipelines that they were saved from."""
    root = tmp_path_factory.mktemp("checkpoints") / "seed-0"
    store = CheckpointStore(root, keep=3)
    pipeline = new_pipeline()
    states = {}
    for step in (1, 2, 3):
        pipeline.train_step(np.full((4, 8), step, np.float32), np.array([0, 1, 0, 1], np.int32))
        store.save(pipeline, Progress(epoch=1, batch=step))
        states[step] = values(pipeline)
    store.close()
    return root, states


def new_pipeline():
    blocks = [nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 2, rngs=nnx.Rngs(1))]
    example = np.zeros((4, 8), np.float32)
    stages = scpl.decouple(blocks, 1, scpl.SupCon(head="identity"), example, nnx.Rngs(2))
    return scpl.Pipeline(stages, optax.adam(1e-2), jax.devices()[:1])


def values(pipeline):
    return jax.device_get([jax.tree.leaves(state) for state in pipeline.states])


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def restored(root, pipeline=None):
    pipeline, store = pipeline or new_pipeline(), CheckpointStore(root, keep=3)
    try:
        progress = store.restore(pipeline)
    finally:
        store.close()
    return progress, pipeline


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "break_file", [truncate, flip_a_bit, *(pytest.param(way, marks=pytest.mark.runs) for way in (empty, os.unlink))]
)
def test_damage_anywhere_is_noticed_and_the_newest_whole_one_is_used(template, tmp_path, caplog, break_file):
    root, states = template
    names = files_of(root / "3")
    assert {"SHA256SUMS", "progress.json"} <= set(names)
    assert len(names) > 4
    pipeline = new_pipeline()
    fresh = pipeline.states
    for number, name in enumerate(names):
        caplog.clear()
        pipeline.states, pipeline.step = fresh, 0
        copy = tmp_path / str(number) / "seed-0"
        shutil.copytree(root, copy)
        break_file(copy / "3" / name)
        progress, _ = restored(copy, pipeline)
        assert (progress.batch, pipeline.step) == (2, 2), name
        chex.assert_trees_all_equal(values(pipeline), states[2])
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("the checkpoint of step 3 is damaged: "), name
        assert "going on from that of step 2" in said
        assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "3.damaged"]


def test_whole_checkpoints_are_restored_to_the_bit(template):
    root, states = template
    assert damage(root / "3") is None
    progress, pipeline = restored(root)
    assert (progress.batch, pipeline.step) == (3, 3)
    chex.assert_trees_all_equal(values(pipeline), states[3])


def test_the_sums_are_those_that_sha256sum_checks(template):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum on this machine")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=template[0] / "3", check=True)


def test_foreign_files_and_several_damaged_ones(template, tmp_path, caplog):
    copy = tmp_path / "seed-0"
    shutil.copytree(template[0], copy)
    (copy / "3" / "more").write_text("")
    shutil.rmtree(copy / "2" / "stage_000")
    assert restored(copy)[1].step == 1
    assert "more does not belong there" in caplog.text
    assert "stage_000/_CHECKPOINT_METADATA is missing" in caplog.text


def test_without_any_whole_one_nothing_is_touched(template, tmp_path):
    copy = tmp_path / "seed-0"
    shutil.copytree(template[0], copy)
    for step in (1, 2, 3):
        empty(copy / str(step) / "progress.json")
    before = files_of(copy)
    with pytest.raises(RunError, match=r"no checkpoint in .* is whole \(step 3: progress.json is not as it was"):
        restored(copy)
    assert files_of(copy) == before


def test_a_damaged_old_checkpoint_does_not_hinder_the_next_save(template, tmp_path):
    copy = tmp_path / "seed-0"
    shutil.copytree(template[0], copy)
    empty(copy / "1" / "progress.json")
    pipeline, store = new_pipeline(), CheckpointStore(copy, keep=2)
    store.restore(pipeline)
    pipeline.step = 4
    store.save(pipeline, Progress(epoch=2))
    store.close()
    assert store.failed is None
    assert sorted(path.name for path in copy.iterdir()) == ["3", "4"]
    assert damage(copy / "4") is None


def test_a_checkpoint_is_not_saved_without_its_metrics(template, tmp_path, caplog):
    copy = tmp_path / "seed-0"
    shutil.copytree(template[0], copy)
    store = CheckpointStore(copy)
    pipeline = new_pipeline()
    pipeline.step = 4
    store.save(pipeline, Progress(), problem="metrics.jsonl: No space left on device")
    store.close()
    assert store.failed == "metrics.jsonl: No space left on device"
    assert "could not be saved (metrics.jsonl: No space left on device); training goes on" in caplog.text
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "3"]


def test_a_checkpoint_that_will_not_fit_is_not_begun(template, tmp_path, caplog, monkeypatch):
    copy = tmp_path / "seed-0"
    shutil.copytree(template[0], copy)
    store, pipeline = CheckpointStore(copy), new_pipeline()
    pipeline.step = 4
    usage = shutil.disk_usage(copy)
    taken = 512 * sum(path.stat().st_blocks for path in (copy / "3").rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=taken))
        store.save(pipeline, Progress())
        store.wait()
    assert f"MB are needed, {taken / 1e6:.1f} MB are free" in (store.failed or "")
    assert len(caplog.records) == 1
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "3"]
    store.save(pipeline, Progress())
    store.close()
    assert damage(copy / "4") is None


@pytest.mark.runs
def test_saving_again_and_again_leaves_nothing_in_memory(tmp_path):
    store, pipeline = CheckpointStore(tmp_path / "seed-0"), new_pipeline()

    def objects_after(saves):
        for _ in range(saves):
            pipeline.step += 1
            store.save(pipeline, Progress())
            store.wait()
        gc.collect()
        return len(gc.get_objects())

    before = objects_after(60)  # what is gathered up to a limit, such as weak references to paths, is there then
    after = objects_after(30)
    store.close()
    assert after < before + 30  # less than one a save


def test_a_vanished_directory_is_reported_and_does_not_come_back(tmp_path, caplog):
    path = tmp_path / "run"
    directory, store, pipeline = RunDirectory(path), CheckpointStore(path / "checkpoints" / "seed-0"), new_pipeline()
    reporter = Reporter(path / "tensorboard", progress=False)
    shutil.rmtree(path)
    line = {"seed": 0, "epoch": 1, "step": 4}
    directory.append_metrics(line)
    store.save(pipeline, Progress())
    store.close()
    reporter.close()
    assert store.failed is not None
    assert directory.failed == "metrics.jsonl: No such file or directory"
    assert directory.last_metrics(0) == line
    assert not path.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this machine")
def test_lines_that_do_not_fit_on_the_disk_are_written_later_in_order(tmp_path):
    directory = RunDirectory(tmp_path)
    lines = [{"seed": 0, "epoch": epoch, "step": 4 * epoch} for epoch in (1, 2, 3)]
    directory.metrics.symlink_to("/dev/full")
    directory.append_metrics(lines[0])
    directory.append_metrics(lines[1])
    assert directory.failed == "metrics.jsonl: No space left on device"
    directory.metrics.unlink()
    directory.append_metrics(lines[2])
    assert (directory.failed, directory.unwritten) == (None, [])
    assert [json.loads(text) for text in directory.metrics.read_text().splitlines()] == lines


def test_a_part_of_a_line_is_taken_back(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path)
    directory.append_metrics({"seed": 0, "epoch": 1})
    whole = directory.metrics.read_text()
    write, sizes = os.write, iter([5])

    def full(handle, content):
        size = next(sizes, None)
        if size is None:
            raise OSError(28, "No space left on device")
        return write(handle, content[:size])

    monkeypatch.setattr(os, "write", full)
    directory.append_metrics({"seed": 0, "epoch": 2})
    assert directory.failed == "metrics.jsonl: No space left on device"
    assert directory.metrics.read_text() == whole


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this machine")
def test_a_full_disk_ends_only_the_curves(tmp_path, caplog, monkeypatch):
    from tensorboardX import event_file_writer

    original = event_file_writer.RecordWriter
    monkeypatch.setattr(event_file_writer, "RecordWriter", lambda _: original("/dev/full"))
    reporter = Reporter(tmp_path, progress=False)
    line = {"step": 4, "learning_rate": 0.1, "train_loss": [0.5] * 200, "test_loss": 0.1, "test_accuracy": 0.2}
    for epoch in (1, 2):
        reporter.after_epoch({**line, "epoch": epoch, "images_per_second": 3.0}, 2)
    reporter.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["TensorBoard's files could not be written (No space left on device); the run goes on without them"]


def test_lines_that_are_none_are_dropped(tmp_path):
    directory = RunDirectory(tmp_path)
    good = b'{"seed": 0, "step": 4}\n{"seed": 1, "step": 12}\n'
    bad = b'{"seed": 0, "step": 12}\n{"seed": 0, "step": null}\n{"seed": \xff}\n[3]\n7\n{"seed": 0, "step": 8}'
    directory.metrics.write_bytes(good + bad)
    directory.keep_metrics(0, 8)
    assert directory.metrics.read_bytes() == good


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(TypeError, match="must be str"), whole_file(path, "w") as file:
        file.writelines(["ne", b"w"])
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a", "old")]


def test_a_directory_has_one_writer(tmp_path):
    directory = RunDirectory(tmp_path)
    with directory.lock():
        for refused in (directory.lock, lambda: RunDirectory.check_free(tmp_path)):
            with pytest.raises(RunError, match=rf"in use by process {os.getpid()} on .* since 20.* \(0 s ago\); wait"):
                refused()
    RunDirectory.check_free(tmp_path)
    RunDirectory.check_free(tmp_path / "not there")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    path = tmp_path / ".lock"
    code = (
        "import sys, time; from pathlib import Path; from scpl_jax.training.writing import Lock\n"
        "lock = Lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(RunError, match=f"in use by process {process.pid} on "):
            Lock(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists()
        Lock(path).release()


def test_a_lock_whose_owner_can_not_be_read_still_holds(tmp_path):
    with Lock(tmp_path / ".lock"):
        for content in ("", "[1]", '{"pid": "x", "host": 3, "since": 1e300}'):
            (tmp_path / ".lock").write_text(content)
            with pytest.raises(RunError, match="is in use by another process; wait"):
                Lock(tmp_path / ".lock")
