"""The timeline model: never faster than physics, exact where nothing overlaps, near the times that DeepEP publishes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.peo.cost import Traffic, even_shares, shares_of
from eplb_plugin.peo.ops import Method, Schedule
from eplb_plugin.peo.presets import HARDWARE, MODELS, PUBLISHED_TIMES, Hardware
from eplb_plugin.peo.ranking import unsplit_us
from eplb_plugin.peo.schedule import make_schedule
from eplb_plugin.peo.timeline import Timeline, gemm_us, lower_bounds, simulate
from strategies import QUICK

DEEPSEEK = MODELS["deepseek-v3"]


def made(method: Method, hardware: Hardware, experts: int = 8, num_rounds: int = 4) -> Schedule:
    rounds = 1 if method == "non-overlap" else num_rounds
    return make_schedule(
        method, num_rounds=rounds, num_local_experts=experts, num_device_sms=hardware.num_sms,
        **({} if method == "non-overlap" else {"deepep_send_num_sms": 16, "deepep_recv_num_sms": 16}),
    )  # fmt: skip


def even(ranks: int = 32, batch: int = 64) -> Traffic:
    return Traffic(DEEPSEEK, even_shares(ranks, 256 // ranks), batch)


@st.composite
def traffics(draw: st.DrawFn) -> Traffic:
    ranks, experts = draw(st.integers(2, 6)), draw(st.sampled_from([4, 8]))
    load = np.array(draw(st.lists(st.integers(0, 50), min_size=ranks * experts, max_size=ranks * experts)), float)
    load[0] += 1.0
    model = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    return Traffic(model, shares_of(load, ranks), draw(st.integers(1, 300)))


methods = st.sampled_from(get_args(Method))
devices = st.sampled_from(sorted(HARDWARE))


@QUICK
@given(traffics(), methods, devices)
def test_never_faster_than_any_resource(traffic: Traffic, method: Method, device: str):
    hardware = HARDWARE[device]
    schedule = made(method, hardware, traffic.num_local_experts)
    timeline = simulate(schedule, hardware, traffic)
    for name, least in lower_bounds(schedule, hardware, traffic).items():
        assert timeline.total_us >= least, name


@QUICK
@given(traffics(), methods, devices, st.booleans())
def test_streams_events_and_sms_are_obeyed(traffic: Traffic, method: Method, device: str, greedy: bool):
    """greedy: GEMMs that ask for the whole device, so that the others have to wait for them."""
    hardware = HARDWARE[device]
    schedule = made(method, hardware, traffic.num_local_experts)
    if greedy:
        ops = [op if op.is_comm else replace(op, num_sms=hardware.num_sms) for op in schedule]
        schedule = replace(schedule, ops=tuple(ops))
    timeline = simulate(schedule, hardware, traffic)
    for rank in {span.rank for span in timeline.spans}:
        spans = sorted(timeline.of_rank(rank), key=lambda span: span.op)
        assert [span.op for span in spans] == list(range(len(schedule)))
        recorded = {op.records: span.end for op, span in zip(schedule, spans, strict=True)}
        last: dict[str, float] = {}
        for op, span in zip(schedule, spans, strict=True):
            assert span.start >= max([last.get(op.stream, 0.0), *(recorded[event] for event in op.waits)])
            assert span.end >= span.start + hardware.launch_us
            last[op.stream] = span.end
        for moment in (span.start for span in spans):
            busy = [op.num_sms for op, s in zip(schedule, spans, strict=True) if s.start <= moment < s.end]
            assert sum(busy) <= hardware.num_sms


def parts(timeline: Timeline, rank: int) -> list[tuple[float, float]]:
    return [(span.start, span.end) for span in sorted(timeline.of_rank(rank), key=lambda span: span.op)]


@QUICK
@given(traffics(), devices)
def test_without_overlap_time_is_the_sum_of_its_parts(traffic: Traffic, device: str):
    hardware = HARDWARE[device]
    timeline = simulate(made("non-overlap", hardware, traffic.num_local_experts), hardware, traffic)
    for rank in {span.rank for span in timeline.spans}:
        spans = parts(timeline, rank)
        assert spans[0][0] == 0.0
        assert all(one[1] == other[0] for one, other in pairwise(spans))


def test_the_sum_by_hand():
    """Two equal ranks, one token: half of the selections cross; every term written out."""
    hardware, traffic = HARDWARE["H800"], even(2, 1)
    total = simulate(made("non-overlap", hardware, 128), hardware, traffic).total_us
    token, back, gb = 7168 * (1 + 4 / 128) + 16, 7168 * 2, 1e3
    active = 256 * (1 - np.exp(-16 / 256)) / 2  # expected experts of a rank with tokens
    comm = 0.0
    for size in (4 * token, 4 * back):
        copy = size / (132 * hardware.sm_copy_gbs * gb)
        # SEND launches, bytes on the link, on their way; RECV was launched meanwhile, and copies
        comm += hardware.launch_us + size / (hardware.link_gbs * gb) + hardware.link_us + copy
    gemm = 2 * hardware.launch_us + active * 3 * 7168 * 2048 / (hardware.hbm_gbs * hardware.hbm_efficiency * gb)
    assert total == pytest.approx(comm + gemm, rel=1e-9)


@pytest.mark.parametrize("published", PUBLISHED_TIMES, ids=lambda one: f"EP{one.num_ranks}")
def test_near_the_times_that_deepep_publishes(published):
    """Dispatch and combine alone, on the hardware that DeepEP's documentation names."""
    hardware, experts = HARDWARE["H800"], 256 // published.num_ranks
    spans = parts(simulate(made("non-overlap", hardware, experts), hardware, even(published.num_ranks, 128)), 0)
    assert spans[1][1] == pytest.approx(published.dispatch_us, rel=0.15)
    assert spans[5][1] - spans[4][0] == pytest.approx(published.combine_us, rel=0.15)


@pytest.mark.parametrize(
    "better", [{"link_gbs": 90.0}, {"link_us": 5.0}, {"launch_us": 1.0}, {"hbm_gbs": 5000.0}, {"fp8_tflops": 3000.0}]
)
@pytest.mark.parametrize("batch", [1, 16, 128, 1024])
def test_better_hardware_is_never_slower_without_overlap(better: dict[str, float], batch: int):
    hardware = HARDWARE["H800"]
    slow, fast = (unsplit_us(one, [even(batch=batch)])[batch] for one in (hardware, replace(hardware, **better)))
    assert fast <= slow


def test_more_tokens_and_more_imbalance_take_longer():
    hardware = HARDWARE["H800"]
    total = [unsplit_us(hardware, [even(batch=batch)])[batch] for batch in (1, 2, 4, 16, 64, 65, 128, 512, 2048)]
    assert total == sorted(total)
    skewed = []
    for factor in (1.0, 1.5, 2.0, 4.0):
        shares = even_shares(32, 8)
        shares[0] *= factor
        skewed.append(unsplit_us(hardware, [Traffic(DEEPSEEK, shares / shares.sum(), 128)])[128])
    assert skewed == sorted(skewed)
    assert skewed[-1] > 1.5 * skewed[0]


def test_equal_ranks_are_simulated_once_and_alike():
    hardware = HARDWARE["H20"]
    shares = even_shares(8, 8)
    nearly = shares.copy()
    nearly[3, 0] *= 1.0 + 1e-12
    one, all_ranks = (
        simulate(made("overlap-2", hardware), hardware, Traffic(DEEPSEEK, loads, 64)) for loads in (shares, nearly)
    )
    assert {span.rank for span in one.spans} == {0}
    assert len({span.rank for span in all_ranks.spans}) == 2
    assert one.total_us == pytest.approx(all_ranks.total_us, rel=1e-6)


def test_gemms_slow_down_with_fewer_sms_and_skip_idle_experts():
    hardware, schedule = HARDWARE["H20"], made("overlap-1", HARDWARE["H20"])
    up = schedule.of_kind("gemm up")[0]
    times = [gemm_us(up, hardware, even(batch=512), sms)[0] for sms in (8, 20, 40, 78)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 5 * times[-1]
    one = np.zeros((32, 8))
    one[0, 0] = 1.0
    _, weights = Traffic(DEEPSEEK, one, 64).gemm("gemm up", (0, 2))
    assert weights[1] == 0.0
    assert weights[0] == pytest.approx(2 * 7168 * 2048)
