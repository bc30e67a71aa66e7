"""Run an experiment and tell, in a file, what it is doing: ``python tests/faults/child.py FOLDER MODULE ARGUMENTS``.

The file ``state-RANK`` holds one record of fixed size that is overwritten in place, ``steps-RANK`` a line for every
training step dispatched; both survive the death of the process, whatever kind it is. Nothing else is changed.
"""

import functools
import importlib
import os
import struct
import sys
from pathlib import Path

RECORD = struct.Struct("<BBq")  # what the main thread does, whether a checkpoint is being written, steps so far
START, STEPS, EVALUATION, END = range(4)
PHASES = ("start-up", "training steps", "evaluation", "end")


class State:
    def __init__(self, folder: Path):
        rank = os.environ.get("JAX_PROCESS_ID", "0")
        self._file = os.open(folder / f"state-{rank}", os.O_WRONLY | os.O_CREAT, 0o644)
        self._steps = os.open(folder / f"steps-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.phase, self.saving, self.done = START, 0, 0
        self.write()

    def write(self) -> None:
        os.pwrite(self._file, RECORD.pack(self.phase, self.saving, self.done), 0)

    def step(self, number: int) -> None:
        os.write(self._steps, f"{os.getpid()} {number}\n".encode())
        self.phase, self.done = STEPS, self.done + 1
        self.write()

    def during(self, function, **values):
        """The function, with these attributes for the time it runs."""

        @functools.wraps(function)
        def told(*arguments, **options):
            before = {name: getattr(self, name) for name in values}
            vars(self).update(values)
            self.write()
            try:
                return function(*arguments, **options)
            finally:
                vars(self).update(before)
                self.write()

        return told


def main() -> int:
    folder, module, *arguments = sys.argv[1:]
    state = State(Path(folder))
    experiment = importlib.import_module(module)
    from scpl_jax.cli.command_line import run
    from scpl_jax.pipeline import Pipeline
    from scpl_jax.training import CheckpointStore, RunDirectory

    dispatch = Pipeline.train_step

    def train_step(self, *arguments, **options):
        state.step(self.step)
        return dispatch(self, *arguments, **options)

    Pipeline.train_step = train_step
    Pipeline.evaluate = state.during(Pipeline.evaluate, phase=EVALUATION)
    CheckpointStore._write = state.during(CheckpointStore._write, saving=1)
    RunDirectory.write_results = state.during(RunDirectory.write_results, phase=END)
    sys.argv = [module, *arguments]  # as config.json has it
    return run(experiment.main)


if __name__ == "__main__":
    sys.exit(main())
