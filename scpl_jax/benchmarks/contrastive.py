"""The contrastive loss of large batches: ``python -m scpl_jax.benchmarks.contrastive --output FILE.json``.

Loss and gradient by the whole matrix of similarities and by blocks of it, in turn, medians over the repeats; and the
memory that each needs beside its input and its result: by the compiler's account, and, each in a process of its own, by
the process's peak resident memory less that before (on a device that tells, its own peak).
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from scpl_jax.benchmarks import measure
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import device_peak_bytes, this_machine
from scpl_jax.cli.option_types import Count, Unset, at_least, integers
from scpl_jax.losses.contrastive_loss import blockwise_loss, columns_of, plain_loss
from scpl_jax.losses.rows import unit_rows

FORMS = ("plain", "blocks")


@dataclasses.dataclass
class Options:
    """Compare the two forms of the contrastive loss."""

    rows: str = "1024,2048,4096,8192"
    """Sizes of the batch at which both are timed."""
    largest: Annotated[int, at_least(2)] = 32768
    """Size at which the memory of the blockwise form is measured, and that of the plain one only looked up."""
    features: Count = 128
    """Length of a row."""
    classes: Count = 10
    """Number of classes."""
    repeats: Count = 9
    """Measurements of each, taken in turn."""
    output: Unset[Path] = None
    """Write the numbers as JSON."""
    only: Unset[str] = None
    """Measure the memory of one form, as blocks:8192 (used by the experiment itself)."""


def _compiled(form: str, n: int, options: Options) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(n, options.features)).astype(np.float32), rng.integers(0, options.classes, n, np.int32)

    def loss(features: jax.Array, labels: jax.Array) -> jax.Array:
        unit = unit_rows(features)
        if form == "plain":
            return plain_loss(unit, labels, 0.1, False)
        return blockwise_loss(unit, labels, 0.1, False, columns_of(n))

    return jax.jit(jax.value_and_grad(loss)).lower(*batch).compile(), batch


def _peak(form: str, n: int, options: Options) -> int:
    """Bytes that loss and gradient need beside what was there before."""
    program, batch = _compiled(form, n, options)
    placed = jax.block_until_ready(jax.device_put(batch))
    before = measure.resident_bytes()
    with measure.ResidentMemory() as memory:
        jax.block_until_ready(program(*placed))
    peak = device_peak_bytes()
    return peak - sum(array.nbytes for array in placed) if peak else memory.peak - before


def _row(n: int, options: Options) -> dict[str, Any]:
    programs = {form: _compiled(form, n, options) for form in FORMS}
    placed = jax.device_put(programs["plain"][1])
    values = {form: jax.device_get(program(*placed)) for form, (program, _) in programs.items()}
    candidates = {
        form: lambda program=program: jax.block_until_ready(program(*placed)) for form, (program, _) in programs.items()
    }
    times = measure.alternate(candidates, options.repeats)
    gradients = values["plain"][1], values["blocks"][1]
    return {
        "rows": n,
        "columns_of_a_block": columns_of(n),
        "seconds": {form: measure.summary(times[form]) for form in FORMS},
        "ratio": measure.ratios(times["blocks"], times["plain"])["median"],
        "largest_difference_of_loss": abs(float(values["plain"][0]) - float(values["blocks"][0])),
        "largest_difference_of_gradient": float(np.abs(gradients[0] - gradients[1]).max() / np.abs(gradients[0]).max()),
    }


def main(arguments: Sequence[str]) -> int:
    """Run the measurement; returns the exit status."""
    options = parse_options(Options, arguments, "scpl_jax.benchmarks.contrastive", Options())
    sizes = integers(options.rows, "--rows", least=2)
    if options.only is not None:
        form, _, number = options.only.partition(":")
        print(_peak(form, int(number), options))
        return 0
    table = [_row(n, options) for n in sizes]
    print(f"{'rows':>8}{'plain ms':>10}{'blocks ms':>11}{'ratio':>8}")
    for row in table:
        milliseconds = [row["seconds"][form]["median"] * 1e3 for form in FORMS]
        print(f"{row['rows']:>8}{milliseconds[0]:>10.1f}{milliseconds[1]:>11.1f}{row['ratio']:>8.3f}")
    memory = []
    print(f"{'rows':>8}{'form':>8}{'compiler MB':>13}{'measured MB':>13}")
    for n in (*sizes, options.largest):
        for form in FORMS:
            account = _compiled(form, n, options)[0].memory_analysis().temp_size_in_bytes
            measured = None
            if form == "blocks" or n != options.largest:
                only = [*arguments, "--only", f"{form}:{n}"]
                measured = measure.in_own_process("contrastive", only, f"{form} with {n} rows")
            memory.append({"rows": n, "form": form, "temporary_bytes": account, "measured_bytes": measured})
            shown = "" if measured is None else f"{measured / 1e6:.0f}"
            print(f"{n:>8}{form:>8}{account / 1e6:>13.0f}{shown:>13}", flush=True)
    measure.write_numbers(options, {"times": table, "memory": memory, **this_machine()}, without="only")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
