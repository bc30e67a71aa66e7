"""What a run leaves, without what depends on the clock: the same for the same seed on the same machine."""

import json
from pathlib import Path
from typing import Any

TIMES = {"train_seconds", "seconds", "peak_memory_bytes", "peak_memory_bytes_per_process"}


def newest(folder: Path) -> int:
    """Step of the newest checkpoint of a seed, 0 without one; a step that is being replaced counts as there."""
    names = {path.name.removesuffix(".old") for path in folder.glob("*") if not path.name.endswith(".partial")}
    return max((int(name) for name in names if name.isdigit()), default=0)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES and not k.endswith("_per_second")}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def outcome(run: Path) -> tuple[Any, Any, dict[str, bytes]]:
    """(results, metrics, arrays of the last checkpoints) without times and memory."""
    import orbax.checkpoint as ocp

    results = without_times(json.loads((run / "results.json").read_text()))
    lines = [without_times(json.loads(text)) for text in (run / "metrics.jsonl").read_text().splitlines()]
    arrays = {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        for seed in sorted((run / "checkpoints").glob("seed-*")):
            for stage in sorted((seed / str(newest(seed))).glob("stage_*")):
                for name, value in checkpointer.restore(stage).items():
                    arrays[f"{seed.name}/{stage.name}/{name}"] = value.tobytes()
    return results, lines, arrays
