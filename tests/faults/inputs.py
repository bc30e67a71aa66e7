"""Feed damaged and nonsensical input to everything that reads some, and see that each case is refused in one sentence.

    python tests/faults/inputs.py --cases 100000 --out experiments/faults --jobs 2

A case is a target and a number; the number decides all of it. Valid input is damaged (bits, bytes, lengths, lines,
repeated and swapped parts, numbers at the edge of their types; values in JSON and TOML; members of archives that lie
outside of it or are links), or made up from the words that belong there. A case is well if it is read, or refused by
an error that a user gets as one sentence; it is not if anything else is raised, if it takes longer than a minute, or if
it opens a file for writing outside its own folder, starts a program, or opens a connection.

Counts are kept in ``inputs.json``: the same command goes on where it was stopped. Problems are in ``inputs.jsonl``.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "data"), str(TESTS / "faults")]

import odd_data  # noqa: E402
import odd_labels  # noqa: E402
import odd_surroundings  # noqa: E402

SECONDS = 60  # a case that takes longer hangs
Files = dict[str, bytes]

# Damage


EDGES = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damage(content: bytes, chance: random.Random) -> bytes:
    """Some bytes, damaged once to four times."""
    found = bytearray(content)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(found) + 1)
        span = min(chance.choice((1, 2, 4, 16, 100, 1000)), len(found) - at)
        kind = chance.randrange(9)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            del found[at : at + span]
        elif kind == 3:
            found[at:at] = chance.randbytes(chance.choice((1, 2, 4, 50)))
        elif kind == 4:
            found[at : at + span] = chance.randbytes(span)
        elif kind == 5:
            found[at:at] = found[at : at + span]
        elif kind == 6:
            order = chance.choice(("<", ">")) + chance.choice("BHI")
            with contextlib.suppress(struct.error):
                number = struct.pack(order, chance.choice(EDGES))
                found[at : at + len(number)] = number
        elif kind == 7:
            lines = bytes(found).split(b"\n")
            line = chance.randrange(len(lines))
            lines[line] = chance.choice(
                (b"", b",", b"\t", b'"', b"\0", b"\xff\xfe", lines[line] * 2, b"nan", b"-1" * 99)
            )
            found = bytearray(b"\n".join(lines))
        else:
            digits = [i for i, byte in enumerate(found) if 48 <= byte <= 57]
            if digits:
                where = chance.choice(digits)
                found[where : where + 1] = str(chance.choice((*EDGES, -1, "1e999", "0.5", "x"))).encode()
    return bytes(found)


ODD_VALUES = (
    None,
    True,
    False,
    -1,
    0,
    1,
    10**30,
    0.5,
    float("inf"),
    float("nan"),
    "",
    "x",
    "../..",
    "1,2",
    [],
    {},
    [[]],
)


def damage_tree(value: Any, chance: random.Random) -> Any:
    """A JSON value in which one place holds something else, or is gone, or is there twice."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    copy = json.loads(json.dumps(value))
    if isinstance(copy, dict | list):
        walk(copy)
    if not places or chance.random() < 0.03:
        return chance.choice(ODD_VALUES)
    for _ in range(chance.randrange(1, 4)):
        node, key = chance.choice(places)
        with contextlib.suppress(KeyError, IndexError):  # changed before
            kind = chance.randrange(4)
            if kind == 0:
                del node[key]
            elif kind == 1 and isinstance(node, list):
                node.append(node[key])
            elif kind == 2:
                node[key] = chance.choice(places)[1]
            else:
                node[key] = chance.choice(ODD_VALUES)
    return copy


def damage_json(content: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return damage(content, chance)
    text = json.dumps(damage_tree(json.loads(content), chance))
    return text.replace("1000000000000000000000000000000", chance.choice(("1e400", "1" * 30, "9" * 5000))).encode()


def damage_lines(content: bytes, chance: random.Random) -> bytes:
    """JSON lines, of which one is damaged."""
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = damage_json(lines[at], chance)
    return b"\n".join(lines) + b"\n" * chance.randrange(2)


def damage_files(files: Files, chance: random.Random) -> Files:
    """A folder in which a file is damaged, is gone, is a folder, or has another name."""
    files = dict(files)
    name = chance.choice(sorted(files))
    kind = chance.randrange(12)
    if kind == 0:
        del files[name]
    elif kind == 1:
        files[chance.choice((name + "x", "x/" + name, name.upper()))] = files.pop(name)
    elif kind == 2:
        files[name + "/x"] = files.pop(name)
    elif kind == 3:
        other = chance.choice(sorted(files))
        files[name], files[other] = files[other], files[name]
    else:
        lines = name.endswith("jsonl")
        change = damage_lines if lines else damage_json if name.endswith("json") else damage
        files[name] = change(files[name], chance)
    return files


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def hostile_tar(files: Files, prefix: str, chance: random.Random) -> bytes:
    """An archive with a member that lies outside, is a link or a device, or is there twice."""
    out = io.BytesIO()
    odd = chance.choice(sorted(files))
    kind = chance.randrange(8)
    with tarfile.open(fileobj=out, mode=chance.choice(("w:gz", "w"))) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{prefix}/{name}")
            member.size = len(content)
            if name == odd:
                member.name = {0: f"../../{name}", 1: f"/tmp/scpl-jax-outside/{name}"}.get(kind, member.name)
                if kind in (2, 3, 4, 5):
                    member.type = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)[kind - 2]
                    member.linkname, member.size = chance.choice(("/etc/passwd", "../../x", name)), 0
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
            if name == odd and kind == 6:
                archive.addfile(member, io.BytesIO(content))
    return out.getvalue() if kind < 7 else damage(out.getvalue(), chance)


def hostile_zip(files: Files, chance: random.Random) -> bytes:
    out = io.BytesIO()
    odd = chance.choice(sorted(files))
    kind = chance.randrange(4)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            if name == odd:
                info.filename = {0: f"../../{name}", 1: f"/tmp/scpl-jax-outside/{name}"}.get(kind, name)
                info.external_attr = 0o120777 << 16 if kind == 2 else 0
            archive.writestr(info, content)
    return out.getvalue() if kind < 3 else damage(out.getvalue(), chance)


# Targets: what reads input. Each gets a folder of its own and a source of chance.


def files_in(make: Callable[[Path], Any]) -> Files:
    """What a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@functools.cache
def sound(name: str) -> Files:
    """Valid files of each kind."""
    import data_archives as archives
    import numpy as np

    def arrays(folder: Path) -> None:
        rng = np.random.default_rng(0)
        parts = {"train": 6, "test": 3}
        images = {f"x_{k}": rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for k, n in parts.items()}
        np.savez(folder / "data.npz", **images, **{f"y_{k}": np.arange(n) % 3 for k, n in parts.items()})

    def tiny_imagenet(folder: Path) -> None:
        for label, one in enumerate(("n01", "n02")):
            for index in range(2):
                path = folder / "train" / one / "images" / f"{one}_{index}.JPEG"
                archives.write_image(path, 100 * label + index, (64, 64))
                archives.write_image(folder / "val" / "images" / f"val_{2 * label + index}.JPEG", 9, (64, 64))
        rows = [f"val_{index}.JPEG\tn0{1 + index // 2}\t0\t0\t62\t62\n" for index in range(4)]
        (folder / "val" / "val_annotations.txt").write_text("".join(rows))

    texts = [("a fine film", 1), ('a dull film, "really"', 0), ("fine and dull", 1), ("no", 0)]
    tsv = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in texts)
    csv = "".join(f'"{label + 1}","{text.replace(chr(34), chr(34) * 2)}","more words"\n' for text, label in texts)
    columns = "text,label\n" + "".join(f'"{text.replace(chr(34), chr(34) * 2)}",{label}\n' for text, label in texts)
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts)
    imdb = {
        f"aclImdb/{split}/{kind}/{number}_7.txt": f"a {word} film<br />".encode()
        for split in ("train", "test")
        for kind, word in (("pos", "fine"), ("neg", "dull"))
        for number in range(2)
    }
    made: dict[str, Callable[[], Files]] = {
        "cifar10 python": archives.cifar10_python,
        "cifar10 binary": archives.cifar10_binary,
        "cifar100 python": archives.cifar100_python,
        "fashion-mnist": lambda: files_in(archives.write_fashion_mnist),
        "fashion-mnist gz": lambda: files_in(functools.partial(archives.write_fashion_mnist, zipped=True)),
        "npz": lambda: files_in(arrays),
        "imagefolder": lambda: files_in(archives.write_image_folder),
        "tiny-imagenet": lambda: files_in(tiny_imagenet),
        "sst2": lambda: {"train.tsv": tsv.encode(), "dev.tsv": tsv.encode()},
        "ag-news": lambda: {"train.csv": csv.encode(), "test.csv": csv.encode()},
        "csv": lambda: {"data.csv": columns.encode()},
        "jsonl": lambda: {"data.jsonl": lines.encode()},
        "imdb": lambda: imdb,
        "vectors": lambda: {"vectors.txt": b"2 3\nfine 1 2 3\ndull 4 5 6\n"},
        "run": a_run,
    }
    return made[name]()


def a_run() -> Files:
    """A run directory as a short training leaves it, without its checkpoints."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from scpl_jax.experiments.cifar import main

    def make(folder: Path) -> None:
        options = [
            "--dataset",
            "synthetic",
            "--width",
            "0.03",
            "--head-dims",
            "8,8",
            "--batch-size",
            "32",
            "--epochs",
            "2",
        ]
        options += ["--limit-train", "64", "--limit-test", "40", "--stages", "2", "--augment", "none", "--timeline"]
        options += ["--method", "early-exit", "--cache-dir", str(folder / "cache"), "--out-dir", str(folder / "run")]
        kept = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
        before = {name: getattr(jax.config, name) for name in kept}
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(options) == 0
        for name, value in before.items():  # the run's own folder goes
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        shutil.rmtree(folder / "cache", ignore_errors=True)  # compiled programs may be kept elsewhere
        shutil.rmtree(folder / "run" / "checkpoints")
        shutil.rmtree(folder / "run" / "tensorboard")

    return {name.removeprefix("run/"): content for name, content in files_in(make).items()}


def images(name: str, kind: str, folder: Path, chance: random.Random) -> None:
    """Read an image data set from a damaged folder."""
    from scpl_jax.data import load

    write(folder / "data", damage_files(sound(kind), chance))
    where = folder / "data" / "data.npz" if name == "npz" and chance.random() < 0.5 else folder / "data"
    load(name, data_dir=where, cache_dir=folder / "cache", image_size=chance.choice((None, None, 8)))


def archive(name: str, kind: str, folder: Path, chance: random.Random) -> None:
    """Read an image data set from a hostile or damaged archive."""
    from scpl_jax.data import load

    data = folder / "data"
    data.mkdir()
    files = damage_files(sound(kind), chance) if chance.random() < 0.3 else sound(kind)
    if name == "tiny-imagenet":
        files = {f"tiny-imagenet-200/{path}": content for path, content in files.items()}
        (data / "tiny-imagenet-200.zip").write_bytes(hostile_zip(files, chance))
    else:
        prefix, file = {
            "cifar10 python": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
            "cifar10 binary": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
            "cifar100 python": ("cifar-100-python", "cifar-100-python.tar.gz"),
        }[kind]
        (data / file).write_bytes(hostile_tar(files, prefix, chance))
    load(name, data_dir=data, cache_dir=folder / "cache")


def kept_dataset(folder: Path, chance: random.Random) -> None:
    """Read a data set whose cache file is damaged."""
    from scpl_jax.data import load

    write(folder / "data", sound("imagefolder"))
    first = load("imagefolder", data_dir=folder / "data", cache_dir=folder / "cache")
    for path in (folder / "cache").rglob("*.npz"):
        path.write_bytes(damage(path.read_bytes(), chance))
    again = load("imagefolder", data_dir=folder / "data", cache_dir=folder / "cache")
    assert (again.train_labels == first.train_labels).all()


def pickles(folder: Path, chance: random.Random) -> None:
    """Load a pickle that wants to call something."""
    import pickle

    from scpl_jax.data.images.readers.cifar_files import _load_arrays

    names = ("os system", "posix system", "builtins eval", "subprocess Popen", "numpy.core.multiarray _reconstruct",
             "numpy ndarray", "numpy dtype", "_codecs encode", "builtins getattr", "shutil rmtree")  # fmt: skip
    module, name = chance.choice(names).split()
    calls = f"c{module}\n{name}\n(S'touch /tmp/scpl-jax-outside'\ntR.".encode()
    content = chance.choice((b"", b"\x80\x02", sound("cifar10 python")["test_batch"][:-1])) + calls
    if chance.random() < 0.5:
        content = damage(chance.choice((content, pickle.dumps({"data": [1], b"labels": (2.5, None)}))), chance)
    _load_arrays(content, "test_batch")


def text(name: str, folder: Path, chance: random.Random) -> None:
    """Read a text data set from damaged files."""
    from scpl_jax.data.text.text_sets import TextRequest, load_texts

    write(folder / "data", damage_files(sound(name), chance))
    options: dict[str, Any] = {"cache_dir": folder / "cache", "max_length": chance.choice((None, 3, 1))}
    if name in ("csv", "jsonl"):
        load_texts(TextRequest("file", data_file=folder / "data" / f"data.{name}", **options))
    else:
        load_texts(TextRequest(name, data_dir=folder / "data", **options))


def vectors(folder: Path, chance: random.Random) -> None:
    """Read damaged word vectors."""
    from scpl_jax.data.text.vectors import read_vectors

    write(folder, damage_files(sound("vectors"), chance))
    read_vectors(folder / "vectors.txt", ["fine", "dull", "3"], chance.choice((None, None, 3, 2)))


ODD_TEXTS = ("", "-1", "0", "1", "2", "3.5", "nan", "inf", "1e999", "-", "--", "auto", "paper", "1,2", "2,1", ",", "x",
             "é", "scpl", "bp", "gpipe", "supcon+0.5*ce", "supcon+", "*", "none", "None", "True", "../..", "9" * 400,
             "cifar10", "lstm", "vgg8", "synthetic", "/dev/null", "[1]", "{}", "=", "a=b", "0x10", "1_000")  # fmt: skip


def commands(command: str, folder: Path, chance: random.Random) -> None:
    """Parse a made-up command line, up to where a program would begin to work."""
    import importlib

    from scpl_jax.cli.command_line import parse_options

    module = importlib.import_module(f"scpl_jax.{command}")
    kind = module.TASK.options if hasattr(module, "TASK") else module.Options
    names = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    arguments: list[str] = []
    for _ in range(chance.randrange(1, 7)):
        name = chance.choice(names)
        if chance.random() < 0.05:
            name = chance.choice((name + "x", name.replace("--", "--no-"), name[1:], name.upper(), "--help"))
        arguments += chance.choice(([name], [name, chance.choice(ODD_TEXTS)], [f"{name}={chance.choice(ODD_TEXTS)}"]))
    with contextlib.redirect_stdout(io.StringIO()):
        options = parse_options(kind, arguments, module.__name__, kind())
    if callable(getattr(kind, "check", None)):
        options.check()


def configuration(folder: Path, chance: random.Random) -> None:
    """Resume a run whose config.json is damaged, up to where it would be built."""
    from scpl_jax.cli.command_line import parse
    from scpl_jax.experiments.cifar import TASK

    write(folder / "run", {"config.json": damage_json(sound("run")["config.json"], chance)})
    parse(TASK.options, ["--out-dir", str(folder / "run"), "--resume"], "cifar")


def report(folder: Path, chance: random.Random) -> None:
    """Write a report of a run whose files are damaged."""
    from scpl_jax.analysis.runs import read_run
    from scpl_jax.report import page

    write(folder / "run", damage_files(sound("run"), chance))
    page([read_run(folder / "run")])


def metrics(folder: Path, chance: random.Random) -> None:
    """Go on with damaged metrics."""
    from scpl_jax.training import RunDirectory

    write(folder, {"metrics.jsonl": damage_lines(sound("run")["metrics.jsonl"], chance)})
    directory = RunDirectory(folder)
    directory.keep_metrics(0, 3)
    directory.append_metrics({"seed": 0, "epoch": 2})
    assert directory.last_metrics(0) == {"seed": 0, "epoch": 2}


def tables(folder: Path, chance: random.Random) -> None:
    """Read a damaged table of runs."""
    from scpl_jax.experiments.tables import read_table

    known = sorted((TESTS.parent / "experiments").glob("*/table.toml"))
    content = chance.choice(known).read_bytes()
    words = content.split()
    for _ in range(chance.randrange(1, 4)):
        content = content.replace(
            chance.choice(words), chance.choice((b"", b"1", b"[]", b'"x"', b"{}", b"-1", b"nan")), 1
        )
    (folder / "table.toml").write_bytes(damage(content, chance) if chance.random() < 0.3 else content)
    read_table(folder / "table.toml", chance.choice(("small", "paper")))


def simulation(folder: Path, chance: random.Random) -> None:
    """Compare the simulation with damaged numbers."""
    from scpl_jax.benchmarks.simulate import Options, _check

    known = sorted((TESTS.parent / "experiments" / "throughput").glob("*.json"))
    path = folder / "measured.json"
    path.write_bytes(damage_json(chance.choice(known).read_bytes(), chance))
    _check(Options(), path)


@functools.cache
def checkpoint_template() -> tuple[Files, Any]:
    """Two checkpoints of a small pipeline, and a pipeline to restore into."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    import scpl_jax as scpl
    from scpl_jax.training import CheckpointStore
    from scpl_jax.training.checkpoints import Progress

    blocks = [nnx.Linear(8, 2, rngs=nnx.Rngs(0))]
    stages = scpl.decouple(blocks, 1, scpl.CrossEntropy(), np.zeros((4, 8), np.float32), nnx.Rngs(2))
    pipeline = scpl.Pipeline(stages, optax.sgd(1e-2), jax.devices()[:1])

    def make(folder: Path) -> None:
        store = CheckpointStore(folder, keep=2)
        for step in (1, 2):
            pipeline.step = step
            store.save(pipeline, Progress(batch=step))
        store.close()

    return files_in(make), pipeline


def checkpoints(folder: Path, chance: random.Random) -> None:
    """Restore where the newest checkpoint is damaged: the older one must be found."""
    from scpl_jax.training import CheckpointStore

    files, pipeline = checkpoint_template()
    newest = {name: content for name, content in files.items() if name.startswith("2/")}
    damaged = damage_files(newest, chance)
    write(folder, {**{name: content for name, content in files.items() if name not in newest}, **damaged})
    store = CheckpointStore(folder)
    progress = store.restore(pipeline)
    store.close()
    assert progress is not None
    there = {name: content for name, content in damaged.items() if name.startswith("2/")}
    assert progress.batch == (2 if there == newest else 1), progress


def forged_checkpoint(folder: Path, chance: random.Random) -> None:
    """Restore a checkpoint with other contents and the right checksums."""
    from scpl_jax.training import CheckpointStore
    from scpl_jax.training.writing import sums_of, write_sums

    files, pipeline = checkpoint_template()
    place = write(folder / "2", {k[2:]: v for k, v in files.items() if k.startswith("2/") and "SHA256" not in k})
    progress = place / "progress.json"
    progress.write_bytes(damage_json(progress.read_bytes(), chance))
    write_sums(place, sums_of(place, place))
    store = CheckpointStore(folder)
    try:
        store.restore(pipeline)
    finally:
        store.close()


TARGETS: dict[str, tuple[int, Callable[[Path, random.Random], None]]] = {  # share of the cases, function
    "CIFAR-10, python": (4, functools.partial(images, "cifar10", "cifar10 python")),
    "CIFAR-10, binary": (4, functools.partial(images, "cifar10", "cifar10 binary")),
    "CIFAR-100, python": (4, functools.partial(images, "cifar100", "cifar100 python")),
    "CIFAR-10, python archive": (4, functools.partial(archive, "cifar10", "cifar10 python")),
    "CIFAR-10, binary archive": (2, functools.partial(archive, "cifar10", "cifar10 binary")),
    "CIFAR-100, archive": (2, functools.partial(archive, "cifar100", "cifar100 python")),
    "Fashion-MNIST, idx": (8, functools.partial(images, "fashion-mnist", "fashion-mnist")),
    "Fashion-MNIST, idx.gz": (4, functools.partial(images, "fashion-mnist", "fashion-mnist gz")),
    "npz": (8, functools.partial(images, "npz", "npz")),
    "image folder": (5, functools.partial(images, "imagefolder", "imagefolder")),
    "Tiny ImageNet": (3, functools.partial(images, "tiny-imagenet", "tiny-imagenet")),
    "Tiny ImageNet, archive": (2, functools.partial(archive, "tiny-imagenet", "tiny-imagenet")),
    "cache of a data set": (3, kept_dataset),
    "pickle": (12, pickles),
    "SST-2": (6, functools.partial(text, "sst2")),
    "AG News": (6, functools.partial(text, "ag-news")),
    "IMDB": (4, functools.partial(text, "imdb")),
    "CSV": (8, functools.partial(text, "csv")),
    "JSON lines": (8, functools.partial(text, "jsonl")),
    "word vectors": (12, vectors),
    "options of cifar": (5, functools.partial(commands, "experiments.cifar")),
    "options of text": (5, functools.partial(commands, "experiments.text")),
    "options of throughput": (3, functools.partial(commands, "benchmarks.throughput")),
    "options of reproduce": (3, functools.partial(commands, "experiments.reproduce")),
    "options of simulate": (2, functools.partial(commands, "benchmarks.simulate")),
    "options of memory": (1, functools.partial(commands, "benchmarks.memory")),
    "options of overhead": (1, functools.partial(commands, "benchmarks.overhead")),
    "config.json": (8, configuration),
    "metrics.jsonl": (10, metrics),
    "report": (2, report),
    "table.toml": (10, tables),
    "simulate --check": (8, simulation),
    "checkpoint": (2, checkpoints),
    "checkpoint, forged": (2, forged_checkpoint),
}
TARGETS |= odd_data.TARGETS | odd_labels.TARGETS | odd_surroundings.TARGETS

# What a case may not do

_allowed: str | None = None
_trespasses: list[str] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn"}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event in _FORBIDDEN:
        _trespasses.append(f"{event} {arguments!r:.200}")
    path: Any = None
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        path = arguments[0]
    elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
        path = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else arguments[0]
        folder = arguments[-1]  # what a relative path belongs to
        if isinstance(path, str) and isinstance(folder, int) and folder > 0 and not os.path.isabs(path):
            path = os.path.join(os.path.realpath(f"/proc/self/fd/{folder}"), path)
    if isinstance(path, str | bytes | os.PathLike):
        real = os.path.realpath(os.fsdecode(path))
        if not f"{real}/".startswith(f"{_allowed}/") and real != "/dev/null":
            _trespasses.append(f"{event} {real}")


def run_case(target: str, number: int) -> str | None:
    """What is wrong with a case, or None."""
    global _allowed
    from scpl_jax.cli.command_line import _is_user_error

    def late(*_: Any) -> None:
        raise TimeoutError(f"no end within {SECONDS} s")

    chance = random.Random(f"{target} {number}")
    problem: str | None = None
    _trespasses.clear()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "case"
        place.mkdir()
        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        _allowed = os.path.realpath(folder)
        tempfile.tempdir = folder
        try:
            TARGETS[target][1](place, chance)
        except SystemExit as stop:
            problem = None if stop.code in (0, None) else f"SystemExit {stop.code}"
        except Exception as error:
            refused = isinstance(error, ValueError) and _is_user_error(error) and "\n" not in str(error)
            if not refused:
                where = traceback.extract_tb(error.__traceback__)[-1]
                problem = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
        finally:
            signal.alarm(0)
            _allowed = tempfile.tempdir = None
    return problem or (f"trespass: {_trespasses[0]}" if _trespasses else None)


def warm_up(target: str) -> None:
    """Make what all cases share, and import what they need, before anybody watches."""
    with contextlib.suppress(Exception, SystemExit), tempfile.TemporaryDirectory() as folder:
        TARGETS[target][1](Path(folder), random.Random(0))


def work(target: str, first: int, last: int) -> tuple[str, int, list[dict[str, Any]]]:
    """Run some cases: (target, how many, the problems)."""
    logging.disable(logging.CRITICAL)
    warm_up(target)
    found = []
    for number in range(first, last):
        if (problem := run_case(target, number)) is not None:
            found.append({"target": target, "case": number, "problem": problem})
    return target, last - first, found


def _start_worker() -> None:
    sys.addaudithook(_audit)
    os.environ["JAX_PLATFORMS"] = "cpu"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--cases", type=int, default=100_000, help="how many to get to, those of earlier calls included"
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/faults"), help="where results are kept")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", help="targets whose name has this in it")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    record, problems = options.out / "inputs.json", options.out / "inputs.jsonl"
    done: collections.Counter[str] = collections.Counter(json.loads(record.read_text()) if record.exists() else {})
    chosen = [name for name in TARGETS if options.only is None or options.only in name]
    shares = sum(TARGETS[name][0] for name in chosen)
    pieces = []
    for name in chosen:
        last = -(-options.cases * TARGETS[name][0] // shares)
        step = 250
        pieces += [(name, at, min(at + step, last)) for at in range(done[name], last, step)]
    random.Random(0).shuffle(pieces)
    pieces.sort(key=lambda piece: piece[1])  # every target from its own beginning, so that counts tell what was run
    bad = 0
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context, _start_worker) as pool:
        for name, count, found in pool.map(work, *zip(*pieces, strict=True)) if pieces else ():
            done[name] += count
            bad += len(found)
            with problems.open("a") as file:
                file.writelines(json.dumps(one) + "\n" for one in found)
            record.write_text(json.dumps({key: done[key] for key in TARGETS if done[key]}, indent=2) + "\n")
            if found:
                print(f"{name}: {len(found)} problems, first: {found[0]}", flush=True)
    print(f"{sum(done.values())} cases, {bad} problems in this call")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
