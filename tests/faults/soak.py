"""Train for an hour on two processes and see whether memory, open files and the time of a step stay where they are.

    python tests/faults/soak.py --minutes 60 --out experiments/faults

Every ten seconds the resident memory and the open file handles of each process are read, and the steps done; the first
fifth is left out, as it fills pools and caches. ``soak.json`` has the samples and the slopes with their 95 % confidence
intervals, ``soak.md`` the summary, ``soak.svg`` the figure.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import child  # noqa: E402

EVERY = 10.0  # seconds between two samples
FEWEST = 60  # samples without which there is no confidence interval worth the name
OPTIONS = ["--dataset", "synthetic", "--stages", "4", "--width", "0.25", "--batch-size", "64", "--epochs", "100000",
           "--limit-train", "1280", "--limit-test", "320", "--head-dims", "64,32", "--augment", "basic"]  # fmt: skip


def sample(pid: int, folder: Path, rank: int) -> dict[str, float]:
    """Memory, open files and steps of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return {
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "steps": child.RECORD.unpack((folder / f"state-{rank}").read_bytes())[2],
    }


def slope(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Change an hour, and the half width of its 95 % confidence interval.

    Neighbouring samples are not independent, so it rests on the means of twelve equal parts of the time.
    """
    parts = [np.mean(part) for part in np.array_split(values, 12)]
    middles = [np.mean(part) for part in np.array_split(times, 12)]
    fit = stats.linregress(np.asarray(middles) / 3600, parts)
    return float(fit.slope), float(fit.stderr * stats.t.ppf(0.975, len(parts) - 2))


def measure(minutes: float, place: Path) -> list[dict[str, Any]]:
    run = place / "run"
    launch = [sys.executable, "-m", "scpl_jax.launch", "--processes", "2", "--pin", "--"]
    inner = [sys.executable, str(HERE / "child.py"), str(place), "scpl_jax.experiments.cifar", *OPTIONS]
    command = [*launch, *inner, "--out-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)  # Ctrl-C is passed on once
    samples: list[dict[str, Any]] = []
    try:
        while not all((place / f"steps-{rank}").exists() for rank in (0, 1)):
            if process.poll() is not None:
                raise SystemExit(f"the run ended with status {process.returncode}")
            time.sleep(1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            time.sleep(EVERY)
            now = time.monotonic() - began
            samples.append({"seconds": now, "ranks": [sample(int(p), place, r) for r, p in enumerate(children)]})
    except KeyboardInterrupt:  # what was seen by then is evaluated
        print(f"stopped after {len(samples)} samples", file=sys.stderr)
        if len(samples) < FEWEST:
            raise
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait()
    if status != 130:
        raise SystemExit(f"the run ended with status {status} where Ctrl-C should give 130")
    return samples


def evaluate(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = samples[len(samples) // 5 :]
    times = np.array([one["seconds"] for one in kept])
    rows = []
    for rank in range(len(kept[0]["ranks"])):
        series = {name: np.array([one["ranks"][rank][name] for one in kept], float) for name in kept[0]["ranks"][rank]}
        step_times = np.diff(times) / np.maximum(np.diff(series["steps"]), 1)
        for name, unit, xs, ys in (
            ("memory", "MB", times, series["rss_bytes"] / 1e6),
            ("open files", "", times, series["files"]),
            ("time a step", "ms", times[1:], step_times * 1e3),
        ):
            change, half = slope(xs, ys)
            rows.append({"process": rank, "what": name, "unit": unit, "median": float(np.median(ys)),
                         "lowest": float(ys.min()), "highest": float(ys.max()), "slope_an_hour": change,
                         "confidence": half})  # fmt: skip
    return rows


def draw(samples: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    minutes = np.array([one["seconds"] for one in samples]) / 60
    for rank, style in ((0, "-"), (1, "--")):
        memory = [one["ranks"][rank]["rss_bytes"] / 1e6 for one in samples]
        steps = np.array([one["ranks"][rank]["steps"] for one in samples])
        axes[0].plot(minutes, memory, style, label=f"process {rank}")
        rates = np.diff(minutes) * 60e3 / np.maximum(np.diff(steps), 1)
        axes[1].plot(minutes[1:], rates, style, label=f"process {rank}")
    axes[0].set_ylabel("resident memory (MB)")
    axes[0].legend()
    axes[1].set_ylabel("time a step (ms)")
    axes[1].set_xlabel("time (minutes)")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="how long to train")
    parser.add_argument("--out", type=Path, default=Path("experiments/faults"), help="where results are kept")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp())
    try:
        samples = measure(options.minutes, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rows = evaluate(samples)
    from scpl_jax.cli.environment import versions

    record = {"date": f"{datetime.now():%Y-%m-%d}", "options": OPTIONS, "rows": rows, "samples": samples,
              "versions": versions()}  # fmt: skip
    (options.out / "soak.json").write_text(json.dumps(record) + "\n")
    steps = samples[-1]["ranks"][0]["steps"]
    text = [
        f"{samples[-1]['seconds'] / 60:.0f} minutes, {steps} steps, the first fifth left out.",
        "",
        "| process | | median | lowest to highest | change an hour, 95 % confidence |",
        "|---|---|---|---|---|",
        *(
            f"| {row['process']} | {row['what']} | {row['median']:.1f} {row['unit']} | {row['lowest']:.1f} to "
            f"{row['highest']:.1f} | {row['slope_an_hour']:+.2f} +- {row['confidence']:.2f} {row['unit']} |"
            for row in rows
        ),
    ]
    (options.out / "soak.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    draw(samples, options.out / "soak.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
