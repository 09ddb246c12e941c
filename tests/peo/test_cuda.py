"""Schedules that run over real processes: all give the bits of the unsplit layer, and illegal orders are timeouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from deep_ep_cpu.heap import ProtocolTimeout
from deep_ep_cpu.reference import Buffer, PatchedBuffer
from eplb_plugin import PluginError
from eplb_plugin.peo.cuda import RoundBuffer, choose_api
from eplb_plugin.peo.ops import Api, Method
from eplb_plugin.peo.protocol import check
from eplb_plugin.peo.schedule import make_schedule
from eplb_plugin.peo.streams import InOrder
from moe_layers import DEVICE_SMS, TOKENS, Batch, Experts, buffer_for, no_limit, split, unsplit
from processes import run_ranks

EXPERTS = 16
SCHEDULES: list[tuple[Method, Api, int]] = [
    ("non-overlap", "stock", 1),
    ("non-overlap", "patched", 1),
    *[("overlap-2", "stock", rounds) for rounds in (1, 2, 4)],
    *[(f"overlap-{number}", "patched", rounds) for number in (1, 2, 3, 4) for rounds in (1, 2, 4)],
]


def schedule_for(method: Method, api: Api, rounds: int, ranks: int):
    made = make_schedule(
        method, api=api, num_rounds=rounds, num_local_experts=EXPERTS // ranks, num_device_sms=DEVICE_SMS
    )
    check(made)
    return made


def tokens_of(rank: int, layer: int) -> int:
    """Uneven, and none on some rank in every layer."""
    return [TOKENS, 0, TOKENS - 3, 1][(rank + layer) % 4]


def all_schedules_over_several_layers(use_fp8: bool) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    plain = buffer_for(Buffer, EXPERTS)
    buffers = {"stock": buffer_for(Buffer, EXPERTS), "patched": buffer_for(PatchedBuffer, EXPERTS)}
    experts = Experts.drawn(EXPERTS)
    own = experts.of_rank(rank, ranks)
    for layer, (method, api, rounds) in enumerate(SCHEDULES):  # one after the other on the same buffers, as layers are
        batch = Batch.drawn(tokens_of(rank, layer), EXPERTS, seed=100 * layer + rank)
        wanted = unsplit(plain, batch, own, EXPERTS, use_fp8=use_fp8)
        made = schedule_for(method, api, rounds, ranks)
        found = split(buffers[api], made, batch, own, EXPERTS, use_fp8=use_fp8)
        assert torch.equal(found.view(torch.int16), wanted.view(torch.int16)), (method, api, rounds)
        if use_fp8 and layer < 2:
            torch.testing.assert_close(wanted.float(), experts.exactly(batch), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("use_fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_schedule_gives_the_bits_of_the_unsplit_layer(ranks: int, use_fp8: bool):
    run_ranks(ranks, all_schedules_over_several_layers, use_fp8)


def all_sends_first_on_a_stock_buffer() -> str:
    buffer = buffer_for(Buffer, EXPERTS)
    buffer.deadline_seconds = 0.5
    made = schedule_for("overlap-1", "patched", 2, dist.get_world_size())
    batch, own = Batch.drawn(TOKENS, EXPERTS, dist.get_rank()), Experts.drawn(EXPERTS)
    with pytest.raises(ProtocolTimeout) as error:
        split(buffer, replace(made, api="stock"), batch, own.of_rank(dist.get_rank(), dist.get_world_size()), EXPERTS)
    return str(error.value)


def test_an_order_that_a_stock_buffer_does_not_allow_is_a_timeout():
    for rank, message in enumerate(run_ranks(2, all_sends_first_on_a_stock_buffer)):
        assert message.startswith(f"dispatch RECV on rank {rank} of local expert 0 from rank ")


def a_combine_before_the_last_round_was_received() -> str:
    buffer = buffer_for(PatchedBuffer, EXPERTS)
    buffer.deadline_seconds = 0.5
    batch = Batch.drawn(TOKENS, EXPERTS, dist.get_rank())
    own = Experts.drawn(EXPERTS).of_rank(dist.get_rank(), dist.get_world_size())

    def dispatch(round_id: int) -> Any:
        return buffer.low_latency_dispatch(
            batch.x, batch.topk_idx, TOKENS, EXPERTS, use_expert_overlap=True, num_rounds=2, round_id=round_id,
            return_recv_hook=True,
        )  # fmt: skip

    (packed, count, handle, _, hook), later = dispatch(0), dispatch(1)
    hook()
    rows = own.compute(*packed, count)[: len(count) // 2]
    buffer.low_latency_combine(
        rows, batch.topk_idx, batch.topk_weights, handle, use_expert_overlap=True, num_rounds=2, round_id=0,
        return_recv_hook=True, is_x_in_round=True,
    )  # fmt: skip
    dist.barrier()
    with pytest.raises(ProtocolTimeout) as error:
        later[4]()
    return str(error.value)


def test_a_combine_send_before_all_dispatch_recvs_is_a_timeout():
    for rank, message in enumerate(run_ranks(2, a_combine_before_the_last_round_was_received)):
        assert message.startswith(f"dispatch RECV on rank {rank} of local expert 4 from rank ")


def graphs_leave_the_buffer_as_they_found_it() -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    batch, own = Batch.drawn(TOKENS, EXPERTS, rank), Experts.drawn(EXPERTS).of_rank(rank, ranks)
    for method, api, rounds in SCHEDULES:
        buffer = buffer_for(Buffer if api == "stock" else PatchedBuffer, EXPERTS)
        before = buffer._index
        split(buffer, schedule_for(method, api, rounds, ranks), batch, own, EXPERTS)
        assert buffer._index == before, (method, api, rounds)


def test_a_layer_makes_an_even_number_of_calls():
    run_ranks(2, graphs_leave_the_buffer_as_they_found_it)


class Recorded(InOrder):
    """Streams that remember what was launched on them."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []

    def launch(self, *ops):
        self.launched += [str(op) for op in ops]
        return super().launch(*ops)


class NoBuffer:
    """Answers like a buffer and remembers its arguments."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.ids: list[list[list[int]]] = []

    def low_latency_dispatch(self, x, topk_idx, tokens, experts, **options):
        self.calls.append(options)
        self.ids.append(topk_idx.tolist())
        first = options.get("round_id", 0) == 0
        filled = ((torch.zeros(4, 2, 8), torch.zeros(4, 2, 1)), torch.zeros(4, dtype=torch.int32), (0, 0, 0, 0, 0))
        return (*(filled if first else (None,) * 3), None, lambda: None)

    def low_latency_combine(self, x, topk_idx, topk_weights, handle, **options):
        self.calls.append({"rows": len(x), **options})
        return torch.zeros(1), None, lambda: None


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_executor_launches_the_list_with_its_sms_and_streams(number: int):
    made = make_schedule(
        f"overlap-{number}", num_rounds=2, num_local_experts=4, num_device_sms=78, deepep_send_num_sms=20,
        deepep_recv_num_sms=10, up_deepgemm_num_sms=40, down_deepgemm_num_sms=44,
    )  # fmt: skip
    buffer, streams, shares = NoBuffer(), Recorded(), []

    def limit(num_sms: int):
        shares.append(num_sms)
        return no_limit(num_sms)

    rounds = RoundBuffer(buffer, made, streams, limit)
    options = {"use_fp8": True, "return_recv_hook": True}
    rounds.low_latency_dispatch(torch.zeros(1, 8), torch.zeros(1, 1, dtype=torch.int64), 1, 8, **options)[4]()

    def compute(part):
        for _ in range(2):
            with rounds.gemm():
                pass
        return torch.zeros(part.end - part.first, 2, 8)

    rounds.run_experts(compute)
    rounds.low_latency_combine(None, None, None, None, return_recv_hook=True)[2]()
    for stream in ("main", "comm", "gemm"):
        assert [name for name in streams.launched if stream in name] == [str(op) for op in made if op.stream == stream]
    assert shares == [40, 44, 40, 44]
    sends = [op for op in made if op.kind.endswith("send")]
    recvs = [op for op in made if op.kind.endswith("recv")]
    for op, call in zip(sends, buffer.calls, strict=True):
        recv = next(one for one in recvs if one.kind[:4] == op.kind[:4] and one.round in (op.round, 0)
                    and (one.num_rounds == 1 or one.round == op.round))  # fmt: skip
        if op.num_rounds == 1:
            assert call == options
            continue
        assert (call["num_rounds"], call["round_id"], call["send_num_sms"]) == (2, op.round, op.num_sms)
        assert call["recv_num_sms"] == recv.num_sms
        assert call["hook_use_comm_stream"] == (recv.stream == "comm")
        assert call.get("rows", 2) == 2


def test_stock_rounds_send_every_selection_once():
    """What a round sends beyond its own experts would be right in the end, and cost the network every time."""
    made = make_schedule("overlap-2", api="stock", num_rounds=2, num_local_experts=4, num_device_sms=78)
    buffer, topk_idx = NoBuffer(), torch.tensor([[0, 1, 2, 3, 4, 7, -1]])
    rounds = RoundBuffer(buffer, made, InOrder(), no_limit)
    rounds.low_latency_dispatch(torch.zeros(1, 8), topk_idx, 1, 8, return_recv_hook=True)[4]()
    own, other, even = buffer.ids
    assert (own, other) == ([[0, 1, -1, -1, 4, -1, -1]], [[-1, -1, 2, 3, -1, 7, -1]])
    assert even == []  # an even number of calls, with the combine


def test_the_api_is_chosen_by_signatures():
    for stock_api in (False, True):
        assert choose_api(PatchedBuffer, stock_api) == ("patched", "")
    assert choose_api(Buffer, stock_api=True) == ("stock", "")
    api, reason = choose_api(Buffer, stock_api=False)
    assert api is None
    assert reason.startswith("this deep_ep has no hook_use_comm_stream, num_rounds, ")
    assert "fix: install a deep_ep that has DeepEP's pull request 492, or set peo.stock_api" in reason


def test_a_list_that_cannot_be_launched_by_phases_is_refused():
    made = make_schedule("overlap-2", num_rounds=2, num_local_experts=4, num_device_sms=78)
    onto_main = replace(made, ops=tuple(replace(op, stream="main") for op in made))
    with pytest.raises(PluginError, match="found dispatch send 1 on main late"):
        RoundBuffer(NoBuffer(), onto_main, InOrder(), no_limit)


def test_calls_without_hooks_are_refused():
    made = make_schedule("non-overlap", num_rounds=1, num_local_experts=4, num_device_sms=78)
    rounds = RoundBuffer(NoBuffer(), made, InOrder(), no_limit)
    for options in ({}, {"return_recv_hook": True, "async_finish": True}):
        with pytest.raises(PluginError, match="return_recv_hook without async_finish"):
            rounds.low_latency_dispatch(torch.zeros(1, 8), torch.zeros(1, 1), 1, 8, **options)
