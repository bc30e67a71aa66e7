import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpl_jax.simulation import Link, StageTimes, simulate, speedup_table
from scpl_jax.simulation.simulator import METHODS

# Equal stages of the closed forms: seconds for a whole batch.
F, B, U = 1.0, 2.0, 0.25
GRID = [(stages, parts) for stages in (1, 2, 4, 7) for parts in (1, 2, 5, 16)]


def equal(stages, **values):
    return [StageTimes(**{"forward": F, "backward": B} | values)] * stages


def pipeline_methods(micro_batches):
    return [("scpl", {}), ("bp", {}), *((m, {"micro_batches": micro_batches}) for m in ("gpipe", "1f1b"))]


def total(stage):
    return stage.forward + stage.backward + stage.local + stage.update


seconds = st.sampled_from([0.0, 0.125, 0.5, 1.0, 3.0]) | st.floats(0, 10)
sizes = st.sampled_from([0.0, 1.0, 8.0])
some_stages = st.lists(
    st.builds(StageTimes, st.floats(0.1, 10), seconds, seconds, seconds, sizes, sizes, sizes, sizes),
    min_size=1,
    max_size=6,
)
some_links = st.builds(Link, st.sampled_from([float("inf"), 8.0, 1.0]), st.sampled_from([0.0, 0.5]))


# Local losses


def test_local_stages_go_at_the_pace_of_the_slowest():
    stages = [StageTimes(1, 2, 0.5, 0.25), StageTimes(2, 4, 0.5, 0.5), StageTimes(1, 1)]
    result = simulate(stages, "scpl", devices=3)
    assert result.step_seconds == pytest.approx(7)
    assert result.throughput == pytest.approx(1 / 7)
    assert result.idle_share == pytest.approx([1 - 3.75 / 7, 0, 1 - 2 / 7])
    assert result.mean_idle_share == pytest.approx((2 - 5.75 / 7) / 3)


@settings(deadline=None)
@given(some_stages, some_links, st.integers(1, 9), st.sampled_from([0.0, 0.25]))
def test_local_steps_take_as_long_as_the_slowest_device_link_or_round(stages, link, max_in_flight, overhead):
    work = [overhead + total(stage) for stage in stages]
    sent = [stage.message_bytes / link.bandwidth for stage in stages[:-1]]
    one_batch = sum(work) + sum(sent) + link.latency * len(sent)
    result = simulate(
        stages, "scpl", devices=len(stages), link=link, max_in_flight=max_in_flight, overhead=overhead
    ).step_seconds
    assert result == pytest.approx(max(*work, *sent, one_batch / max_in_flight))


def test_one_batch_in_flight_makes_local_stages_sequential():
    result = simulate(equal(4, local=0.5), "scpl", devices=4, max_in_flight=1)
    assert result.step_seconds == pytest.approx(4 * 3.5)
    assert all(a.end <= b.start for a, b in itertools.pairwise(result.spans))


def test_batches_in_flight_are_bounded():
    spans = simulate(equal(5), "scpl", devices=5, max_in_flight=3).spans
    entered = [span.start for span in spans if span.stage == 0]
    left = [span.end for span in spans if span.stage == 4]
    # the pipeline fills, and then there is as much again to look at
    assert len(entered) > 2 * 3
    assert max(sum(a <= at for a in entered) - sum(e <= at for e in left) for at in entered) == 3


def test_a_link_slows_local_stages_down_only_once_it_takes_longer_than_the_work():
    def step(bandwidth, latency=0.0):
        link = Link(bandwidth, latency)
        return simulate(equal(4, message_bytes=12), "scpl", devices=4, link=link, max_in_flight=64).step_seconds

    assert [step(12.0), step(4.0), step(2.0), step(1.0)] == pytest.approx([3, 3, 6, 12])
    assert step(12.0, latency=20.0) == pytest.approx(3)


def test_a_local_stage_holds_one_batch_of_activations_and_its_queue():
    values = {"activation_bytes": 100, "message_bytes": 7, "state_bytes": 1000, "local_state_bytes": 50}
    stages = [StageTimes(0.5, 0.5, **values), StageTimes(1, 2, **values)]
    # of four batches in flight one is worked on, and the three others wait
    assert simulate(stages, "scpl", devices=2, max_in_flight=4).peak_bytes == (1150, 1150 + 3 * 7)
    assert simulate(stages, "scpl", devices=2, max_in_flight=1).peak_bytes == (1150, 1150)
    # on one device both states are there, but only one stage's activations beside no message
    assert simulate(stages, "scpl", devices=1).peak_bytes == (2200,)


def test_a_message_stays_with_its_sender_until_it_is_sent():
    stages = [StageTimes(1, 1, message_bytes=6), StageTimes(1, 1)]
    peaks = [simulate(stages, "scpl", devices=2, link=Link(1), max_in_flight=k).peak_bytes for k in (1, 3)]
    # three in flight: the link takes three times as long as a stage, so at first all of them are on it or before it
    assert peaks == [(6, 0), (18, 0)]


def test_queues_are_followed_until_they_stop_growing():
    # The link catches up with the second device by one second a batch: in the end, of four batches in flight, one is
    # under work, one on the way, and two wait.
    stages = [StageTimes(1, 0, message_bytes=9), StageTimes(10, 0)]
    result = simulate(stages, "scpl", devices=2, link=Link(1), max_in_flight=4)
    assert result.step_seconds == pytest.approx(10)
    assert result.peak_bytes[1] == 2 * 9


# Backpropagation


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
def test_local_stages_are_as_many_times_faster_as_there_are_of_them(stages):
    bp = simulate(equal(stages), "bp", devices=stages)
    assert bp.step_seconds / simulate(equal(stages), "scpl", devices=stages).step_seconds == pytest.approx(stages)
    assert bp.mean_idle_share == pytest.approx(1 - 1 / stages)
    # the first stage updates last; the others update meanwhile
    assert simulate(equal(stages, update=U), "bp", devices=stages).step_seconds == pytest.approx(stages * (F + B) + U)


def test_backpropagation_has_no_local_loss():
    with_heads = simulate(equal(3, local=9.0, local_state_bytes=5), "bp", devices=3)
    assert with_heads == simulate(equal(3), "bp", devices=3)


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "parts"), GRID)
def test_the_bubble_of_micro_batches(method, stages, parts):
    # The last stage is busy for M (f + b) without a gap, since its forward and backward are one program: the first
    # message reaches it after S - 1 forwards, and S - 1 backwards follow its last one, each of 1/M of a batch.
    result = simulate(equal(stages), method, devices=stages, micro_batches=parts)
    assert result.step_seconds == pytest.approx((parts + stages - 1) * (F + B) / parts)
    assert result.idle_share == pytest.approx([(stages - 1) / (parts + stages - 1)] * stages)
    with_update = simulate(equal(stages, update=U), method, devices=stages, micro_batches=parts)
    assert with_update.step_seconds == pytest.approx(result.step_seconds + U)


@pytest.mark.parametrize(("stages", "parts"), GRID)
def test_gpipe_waits_for_each_hop_once_but_1f1b_again_and_again(stages, parts):
    def step(method):
        link = Link(latency=0.01)
        return simulate(equal(stages), method, devices=stages, micro_batches=parts, link=link).step_seconds

    bubble = (parts + stages - 1) * (F + B) / parts
    assert step("gpipe") == pytest.approx(bubble + 2 * (stages - 1) * 0.01)
    # a stage of 1F1B has no micro-batch in reserve for the time its messages travel
    assert step("1f1b") >= step("gpipe") - 1e-9
    if stages > 1 and parts > stages:
        assert step("1f1b") > step("gpipe") + 0.01


@pytest.mark.parametrize(("stages", "parts"), GRID)
def test_every_program_costs_its_overhead(stages, parts):
    def step(method, overhead, **options):
        return simulate(equal(stages), method, devices=stages, overhead=overhead, **options).step_seconds

    # on the longest way are S - 1 forwards, M programs of the last stage, S - 1 backwards and an update
    added = step("gpipe", 0.001, micro_batches=parts) - step("gpipe", 0.0, micro_batches=parts)
    assert added == pytest.approx(0.001 * (2 * (stages - 1) + parts + 1))
    assert step("scpl", 0.001) == pytest.approx(F + B + 0.001)


@pytest.mark.parametrize(("stages", "parts"), GRID)
def test_1f1b_stores_fewer_micro_batches(stages, parts):
    def stored(method):
        result = simulate(equal(stages, activation_bytes=parts), method, devices=stages, micro_batches=parts)
        return list(result.peak_bytes)

    # the last stage goes forward and backward in one program: it stores one micro-batch
    assert stored("gpipe") == [parts] * (stages - 1) + [1]
    assert stored("1f1b") == [min(stages - stage, parts) for stage in range(stages)]


@pytest.mark.parametrize(("stages", "parts"), [(2, 4), (4, 8), (4, 3), (6, 12)])
def test_remat_trades_time_for_memory(stages, parts):
    values = {"activation_bytes": 100 * parts, "message_bytes": parts}
    free, remat = (
        simulate(equal(stages, **values), "gpipe", devices=stages, micro_batches=parts, remat=r) for r in (False, True)
    )
    f, b = F / parts, B / parts
    # the backward passes, as long as the last stage's programs now, start when the first gradient or the stage is ready
    path = max((stages - 1) * (2 * f + b), (parts + stages - 2) * f + (stages - 2) * (f + b))
    assert remat.step_seconds == pytest.approx(parts * (f + b) + path)
    assert remat.step_seconds > free.step_seconds
    assert max(remat.peak_bytes) < max(free.peak_bytes)
    if stages > 2 and parts > stages:
        # the second stage: while it takes the first micro-batch backward it stores the inputs of the others
        assert remat.peak_bytes[1] == 100 + parts - 1
        assert free.peak_bytes[1] == 100 * parts


def test_each_direction_of_a_link_carries_one_message_after_the_other():
    stages = [StageTimes(2, 2, message_bytes=6), StageTimes(2, 2)]
    spans = simulate(stages, "gpipe", devices=2, micro_batches=2, link=Link(1)).spans
    assert [(s.kind, s.device, s.micro_batch, s.start, s.end) for s in spans if s.batch == 0] == [
        ("forward", 0, 0, 0, 1),
        ("forward_backward", 1, 0, 4, 6),
        ("forward", 0, 1, 1, 2),
        ("forward_backward", 1, 1, 7, 9),
        ("backward", 0, 0, 9, 10),
        ("backward", 0, 1, 12, 13),
        ("update", 0, 0, 13, 13),
        ("update", 1, 0, 9, 9),
    ]


def test_steps_that_alternate_are_averaged():
    # Every other step the second device's long update keeps the first message waiting: by hand 8.5, 10.5, then 9 and
    # 10 seconds in turn.
    stages = [StageTimes(0, 4, message_bytes=4), StageTimes(1, 0, update=8)]
    result = simulate(stages, "gpipe", devices=2, micro_batches=2, link=Link(1))
    assert result.step_seconds == pytest.approx(9.5)
    updates = [span.end for span in result.spans if (span.kind, span.device) == ("update", 0)]
    assert updates[:4] == pytest.approx([8.5, 19, 28, 38])


# Layout


def test_neighbouring_stages_share_a_device():
    stages = [StageTimes(0.5, 0.5, message_bytes=5, activation_bytes=10, state_bytes=k) for k in (1, 2, 4)]
    stages.append(StageTimes(2, 2, state_bytes=8))
    local = simulate(stages, "scpl", devices=2)
    assert local.step_seconds == pytest.approx(4)
    assert {span.stage: span.device for span in local.spans} == {0: 0, 1: 0, 2: 0, 3: 1}
    assert local.idle_share == pytest.approx([0.25, 0])

    bp = simulate(stages, "bp", devices=2, link=Link(5), overhead=0.25)
    # one program for three stages, so 2 x 3 seconds of work, 4 programs on the longest way and a message each way
    assert bp.step_seconds == pytest.approx(7 + 4 * 0.25 + 2)
    # states, the activations of three stages, and a message or gradient while it is sent
    assert bp.peak_bytes == (7 + 30 + 5, 8 + 5)
    assert {(span.stage, span.device) for span in bp.spans} == {(0, 0), (3, 1)}


def test_the_layout_balances_what_the_method_does():
    stages = [StageTimes(1, 1), StageTimes(1, 1), StageTimes(1, 1, local=4)]

    def first_stages(method):
        return {span.stage for span in simulate(stages, method, devices=2).spans if span.device == 1}

    assert first_stages("scpl") == {2}
    assert first_stages("bp") == {1}


@pytest.mark.parametrize(("method", "options"), pipeline_methods(4))
def test_devices_without_a_stage_do_not_count(method, options):
    assert simulate(equal(3), method, devices=9, **options) == simulate(equal(3), method, devices=3, **options)


@pytest.mark.parametrize(("method", "options"), pipeline_methods(4))
def test_one_device_does_everything(method, options):
    link = Link(0.001, 100.0)
    result = simulate(equal(3, message_bytes=1, update=U), method, devices=1, link=link, **options)
    assert result.step_seconds == pytest.approx(3 * (F + B + U))
    assert result.idle_share == pytest.approx([0])


# All methods


@settings(deadline=None)
@given(some_stages, some_links, st.sampled_from(METHODS), st.integers(1, 7), st.integers(1, 5), st.integers(1, 4))
def test_a_step_takes_at_least_the_slowest_device_and_at_most_everything(
    stages, link, method, devices, parts, max_in_flight
):
    parts = parts if method in ("gpipe", "1f1b") else 1
    result = simulate(
        stages,
        method,
        devices=devices,
        micro_batches=parts,
        link=link,
        max_in_flight=max_in_flight,
        overhead=0.125,
    )
    work = [
        0.125 + stage.forward + stage.backward + stage.update + (stage.local if method == "scpl" else 0)
        for stage in stages
    ]
    messages = sum(parts * link.latency + stage.message_bytes / link.bandwidth for stage in stages[:-1])
    everything = sum(work) + 0.125 * (2 * parts + 1) * len(stages) + 2 * messages
    assert max(*work, sum(work) / devices if method == "scpl" else 0) <= result.step_seconds + 1e-9
    assert result.step_seconds <= everything + 1e-9
    assert len(result.idle_share) == min(len(stages), devices)
    assert all(0 <= share <= 1 for share in result.idle_share)
    for device in range(min(len(stages), devices)):
        own = [span for span in result.spans if span.device == device]
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))
        busy = sum(span.end - span.start for span in own if span.batch == 0)
        assert 1 - busy / result.step_seconds == pytest.approx(result.idle_share[device], abs=1e-9)
    assert sum(result.peak_bytes) >= sum(stage.state_bytes for stage in stages)


whole = st.integers(1, 4).map(float)


@settings(deadline=None)
@given(
    st.lists(st.builds(StageTimes, whole, whole, whole, whole, whole, whole), min_size=2, max_size=5),
    st.sampled_from(METHODS),
    st.integers(1, 6),
)
def test_the_unit_of_time_changes_nothing_else(stages, method, parts):
    def run(unit):
        scaled = [
            StageTimes(
                *(unit * t for t in (s.forward, s.backward, s.local, s.update)), s.activation_bytes, s.message_bytes
            )
            for s in stages
        ]
        options = {"micro_batches": parts} if method in ("gpipe", "1f1b") else {"max_in_flight": parts}
        return simulate(scaled, method, devices=len(stages), link=Link(1 / unit), **options)

    ours, theirs = run(1.0), run(0.1)
    assert theirs.step_seconds == pytest.approx(ours.step_seconds / 10)
    # what ends when something else begins is not there at the same time, whatever the rounding
    assert theirs.peak_bytes == pytest.approx(ours.peak_bytes)


def test_the_table_has_a_row_for_each_number_of_stages():
    link = Link(4.0)
    rows = speedup_table(lambda n: equal(n, message_bytes=1), [2, 16], [1, 4], link=link, overhead=0.5, remat=True)
    assert [row["stages"] for row in rows] == [2, 16]
    names = ["bp", "gpipe 1", "gpipe 4", "1f1b 1", "1f1b 4"]
    for row in rows:
        assert list(row) == ["stages", "scpl", *names, *(f"{name}/scpl" for name in names)]
        assert all(row[f"{name}/scpl"] == row[name] / row["scpl"] for name in names)
        assert row["scpl"] == pytest.approx(F + B + 0.5)
    stages = equal(16, message_bytes=1)
    own = simulate(stages, "1f1b", devices=16, micro_batches=4, link=link, overhead=0.5, remat=True)
    assert rows[1]["1f1b 4"] == own.step_seconds
    assert rows[1]["bp"] == simulate(stages, "bp", devices=16, link=link, overhead=0.5).step_seconds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dp"}, "unknown method 'dp'"),
        ({"stages": []}, "at least one stage"),
        ({"stages": [StageTimes(0, 0)]}, "no time"),
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"micro_batches": 0}, "micro_batches must be at least 1"),
        ({"max_in_flight": 0}, "max_in_flight must be at least 1"),
        ({"overhead": -1.0}, "overhead must be"),
        ({"overhead": float("nan")}, "overhead must be"),
        ({"method": "bp", "micro_batches": 2}, "'bp' takes whole batches"),
        ({"method": "scpl", "micro_batches": 2}, "'scpl' takes whole batches"),
        ({"method": "scpl", "remat": True}, "remat is not for it"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        simulate(**{"stages": equal(2), "method": "gpipe", "devices": 2} | changes)


def test_wrong_times_and_links_are_named():
    with pytest.raises(ValueError, match="message_bytes of a stage must be finite and at least 0"):
        StageTimes(1, 1, message_bytes=-1)
    with pytest.raises(ValueError, match="forward of a stage"):
        StageTimes(float("nan"), 1)
    for values in ({"bandwidth": 0}, {"latency": -1}, {"latency": float("inf")}):
        with pytest.raises(ValueError, match="a link needs"):
            Link(**values)
