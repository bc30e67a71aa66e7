"""The timeline of a training run, as --timeline records it."""

from pathlib import Path

from scpl_jax.analysis.figures import attempt
from scpl_jax.analysis.timeline_figure import draw, write_trace
from scpl_jax.cli.environment import say
from scpl_jax.pipeline import Pipeline, Timeline, idle_shares, processes


class Recording:
    """The timeline of fifty steps, written when they are over or training ends before."""

    FIRST, LAST = 3, 53  # the first steps are not typical

    def __init__(self, pipeline: Pipeline, folder: Path):
        self._pipeline, self._folder = pipeline, folder
        self._timeline: Timeline | None = None
        self._done = False

    def after_step(self, done: int) -> None:
        """Start or finish when it is time."""
        if done == self.FIRST and not self._done:
            self._pipeline.wait()
            self._timeline = Timeline(self._pipeline)
        elif done == self.LAST:
            self.finish()

    def finish(self) -> None:
        """Write ``timeline.json`` and ``timeline.svg`` and print the idle share of each device."""
        if self._timeline is None:
            return
        spans = self._timeline.stop_everywhere()
        self._timeline, self._done = None, True
        if processes.is_first() and spans:
            written = attempt("timeline.json", write_trace, spans, self._folder / "timeline.json")
            shown = [span for span in spans if span.step < min(s.step for s in spans) + 12]
            title = "backpropagation" if self._pipeline.end_to_end else "local losses"
            attempt("timeline.svg", draw, {title: shown}, self._folder / "timeline.svg")
            # At first a stage that is faster than the one behind it works ahead; its waiting begins later.
            steps = len({span.step for span in spans})
            skip = min(3 * self._pipeline.max_in_flight, steps // 2)
            idle = ", ".join(f"{name} {share:.0%}" for name, share in idle_shares(spans, skip).items())
            where = f"; {self._folder}/timeline.json opens in https://ui.perfetto.dev" if written else ""
            say(f"idle: {idle}{where}")
