"""The lists that make_schedule makes: what the methods promise to overlap, shares, and what is refused."""

from __future__ import annotations

from typing import get_args

import pytest

from eplb_plugin import PluginError
from eplb_plugin.peo.ops import Kind, Method, Schedule
from eplb_plugin.peo.schedule import default_num_rounds, make_schedule

DEVICE = 78


def schedule(method: Method, num_rounds: int = 4, **changes: object) -> Schedule:
    rounds = 1 if method == "non-overlap" else num_rounds
    return make_schedule(method, num_rounds=rounds, num_local_experts=8, num_device_sms=DEVICE, **changes)  # type: ignore[arg-type]


def names(made: Schedule, stream: str) -> list[str]:
    return [f"{op.kind} {op.round}" for op in made if op.stream == stream]


def test_the_main_stream_of_each_method():
    back = ["combine send 0", "combine send 1", "combine recv 0"]
    sends, recvs = ["dispatch send 0", "dispatch send 1"], ["dispatch recv 0", "dispatch recv 1"]
    assert names(schedule("overlap-1", 2), "main") == [*sends, *recvs, *back]
    in_turn = [name for pair in zip(sends, recvs, strict=True) for name in pair]
    assert names(schedule("overlap-2", 2), "main") == [*in_turn, *back]
    assert names(schedule("overlap-3", 2), "main") == [*sends, *back]
    assert names(schedule("overlap-3", 2), "comm") == recvs
    assert names(schedule("overlap-4", 2), "main") == [sends[0], recvs[0], *back]
    assert names(schedule("overlap-2", 2, api="stock"), "main") == [*in_turn, back[0], back[2]]
    assert {op.stream for op in schedule("non-overlap")} == {"main"}


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("method", get_args(Method))
def test_every_phase_covers_all_local_experts(method: Method, kind: Kind):
    slices = [op.experts for op in schedule(method).of_kind(kind)]
    assert [first for first, _ in slices] == [0, *(end for _, end in slices[:-1])]
    assert slices[-1][1] == 8


@pytest.mark.parametrize("method", ["overlap-1", "overlap-2", "overlap-3", "overlap-4"])
@pytest.mark.parametrize(("send", "recv"), [(None, None), (8, 24), (40, 10)])
def test_what_can_run_together_fits_the_device(method: Method, send: int | None, recv: int | None):
    made = schedule(method, deepep_send_num_sms=send, deepep_recv_num_sms=recv)
    gemm = max(op.num_sms for op in made if not op.is_comm)
    sends = [op.num_sms for op in made if op.kind.endswith("send") and op.num_sms < DEVICE]
    recvs = [op.num_sms for op in made if op.kind == "dispatch recv" and op.round > 0]
    assert gemm + max(*sends, *recvs) == DEVICE if method != "overlap-3" else gemm + sends[0] + recvs[0] == DEVICE
    if method == "overlap-3":
        assert made.of_kind("dispatch recv")[0].num_sms + made.of_kind("dispatch send")[1].num_sms == DEVICE


def test_given_gemm_shares_are_used_and_a_stock_buffer_takes_all():
    made = schedule("overlap-1", up_deepgemm_num_sms=50, down_deepgemm_num_sms=60)
    assert {op.num_sms for op in made.of_kind("gemm up")} == {50}
    assert {op.num_sms for op in made.of_kind("gemm down")} == {60}
    assert {op.num_sms for op in schedule("overlap-2", api="stock")} == {DEVICE}
    one = schedule("overlap-1", 1)
    assert {op.num_sms for op in one} == {DEVICE}  # one round: nothing is beside anything


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "overlap-5"}, "peo.method: found 'overlap-5', expected non-overlap, overlap-1"),
        ({"api": "v2"}, "peo.api: found 'v2'"),
        ({"num_rounds": 3}, "3 rounds of 8 local experts, expected equal slices; fix: set it to one of 1, 2, 4, 8"),
        ({"num_rounds": 0}, "0 rounds"),
        ({"method": "non-overlap"}, "peo.num_rounds: found 4, expected 1 with non-overlap"),
        ({"api": "stock"}, "overlap-1 with the stock API, expected overlap-2"),
        ({"api": "stock", "method": "overlap-2", "deepep_send_num_sms": 8}, "a stock buffer takes all SMs"),
        ({"deepep_recv_num_sms": 78}, "78 of 78 SMs for SEND and RECV, expected some left"),
        ({"deepep_send_num_sms": 79}, "peo.deepep_send_num_sms: found 79, expected 1..78"),
        ({"up_deepgemm_num_sms": -3}, "peo.up_deepgemm_num_sms: found -3"),
        ({"down_deepgemm_num_sms": 0}, "peo.down_deepgemm_num_sms: found 0"),
    ],
)
def test_refused_in_one_line(changes: dict[str, object], message: str):
    values = {"method": "overlap-1", "num_rounds": 4, "num_local_experts": 8, "num_device_sms": DEVICE} | changes
    with pytest.raises(PluginError) as error:
        make_schedule(values.pop("method"), **values)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_rounds", [1, 2, 8])
@pytest.mark.parametrize("device", [4, 20, 132])
def test_the_default_share_leaves_small_devices_room(num_rounds: int, device: int):
    made = make_schedule("overlap-3", num_rounds=num_rounds, num_local_experts=8, num_device_sms=device)
    assert min(op.num_sms for op in made) >= 1


def test_about_four_rounds():
    assert [default_num_rounds(experts) for experts in (1, 2, 3, 5, 6, 8, 9, 14, 20, 36)] == [
        1,
        2,
        3,
        5,
        3,
        4,
        3,
        2,
        4,
        4,
    ]
