import dataclasses
import itertools
import json
import time
import xml.etree.ElementTree

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.analysis.timeline_figure import draw, trace_events, write_trace
from scpl_jax.pipeline import Span, Timeline, idle_shares


@pytest.fixture
def stages(small_vgg, batch):
    return scpl.decouple(small_vgg(), 3, scpl.SupCon(head_dims=(8, 6)), batch[0], nnx.Rngs(1))


def test_every_step_of_every_stage_is_recorded_in_order(stages, batch):
    # A thread that notes the time may wake late by about a millisecond: steps must take longer than that.
    batch = [np.concatenate([part] * 32) for part in batch]
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:2])
    pipeline.train_step(*batch)
    timeline = Timeline(pipeline)
    began = time.time()
    for _ in range(5):
        pipeline.train_step(*batch)
    spans = timeline.stop()
    ended = time.time()
    pipeline.train_step(*batch)  # is not recorded any more
    assert sorted((span.stages, span.step) for span in spans) == [(s, t) for s in "012" for t in range(1, 6)]
    assert {span.stages: span.device for span in spans} == {
        str(index): str(mesh.devices.flat[0]) for index, mesh in enumerate(pipeline.meshes)
    }
    for device in {span.device for span in spans}:
        lane = [span for span in spans if span.device == device]
        assert all(a.end <= b.start for a, b in itertools.pairwise(lane))
    for stage in "12":
        for span in (span for span in spans if span.stages == stage):
            before = next(s for s in spans if s.stages == str(int(stage) - 1) and s.step == span.step)
            assert span.end > before.end
    assert all(began - 0.1 <= span.start <= span.end <= ended + 0.1 for span in spans)


def test_micro_batches_are_told_apart(small_vgg, batch):
    stages = scpl.decouple(small_vgg(), 2, scpl.CrossEntropy(), batch[0], nnx.Rngs(1))
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:2], micro_batches=2)
    pipeline.train_step(*batch)
    timeline = Timeline(pipeline)
    pipeline.train_step(*batch)
    tasks = sorted((span.stages, span.task, span.micro_batch) for span in timeline.stop())
    assert tasks == [
        ("0", "backward", 0),
        ("0", "backward", 1),
        ("0", "forward", 0),
        ("0", "forward", 1),
        ("1", "forward_backward", 0),
        ("1", "forward_backward", 1),
    ]


SPANS = [
    Span("forward", "0", "a", 4, 0, 10.0, 11.0),
    Span("forward_backward", "1", "b", 4, 0, 11.0, 13.0),
    Span("backward", "0", "a", 4, 0, 13.0, 14.0),
    Span("forward", "0", "a", 5, 0, 14.0, 15.0),
    Span("forward_backward", "1", "b", 5, 0, 15.0, 17.0),
    Span("backward", "0", "a", 5, 0, 17.0, 18.0),
]


def test_idle_shares():
    assert idle_shares(SPANS) == {"a": 0.5, "b": 0.5}
    longer = [dataclasses.replace(span, end=span.end + 0.5) for span in SPANS[:2]] + SPANS[2:]
    assert idle_shares(longer) == {"a": 0.5, "b": pytest.approx(1 - 2 / 3.5)}
    assert idle_shares(SPANS, skip=1) == {}  # one step has no steady state
    assert idle_shares([]) == {}


def test_a_device_that_is_steps_behind_another_is_not_idle():
    ahead = [Span("step", "0", "a", step, 0, float(step), step + 1.0) for step in range(6)]
    behind = [Span("step", "1", "b", step, 0, step + 4.0, step + 5.0) for step in range(6)]
    assert idle_shares(ahead + behind) == {"a": 0.0, "b": 0.0}


def test_trace_has_a_lane_for_each_device_and_microseconds(tmp_path):
    write_trace(SPANS, tmp_path / "timeline.json")
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert events == trace_events(SPANS)["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {0: "a", 1: "b"}
    second = [event for event in events if event["ph"] == "X"][1]
    assert (second["name"], second["tid"], second["ts"], second["dur"]) == (
        "stage 1 forward and backward 0, step 4",
        1,
        1e6,
        2e6,
    )


def test_the_chart_is_a_whole_file_and_the_same_every_time(tmp_path):
    for name in ("one.svg", "two.svg"):
        draw({"first": SPANS, "second": SPANS[:3]}, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    xml.etree.ElementTree.fromstring(text)
