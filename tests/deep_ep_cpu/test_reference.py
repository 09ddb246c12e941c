"""The contract of DeepEP's low-latency calls, as the CPU reference keeps it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from deep_ep_cpu import fp8
from deep_ep_cpu.heap import LowLatencyLayout, ProtocolTimeout
from deep_ep_cpu.reference import Buffer, PatchedBuffer
from eplb_plugin.errors import PluginError
from moe_layers import HIDDEN, TOKENS, Batch, Experts, buffer_for, unsplit
from processes import Ranks

EXPERTS = 8


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(2) as started:
        yield started


def test_signatures_are_those_of_deep_ep():
    """As engines call them: by position up to the sizes, by name from there."""
    names = "self x topk_idx num_max_dispatch_tokens_per_rank num_experts cumulative_local_expert_recv_stats"
    options = "use_fp8 round_scale use_ue8m0 async_finish return_recv_hook"
    patch = "use_expert_overlap num_rounds round_id send_num_sms recv_num_sms hook_use_comm_stream"
    for kind, more in ((Buffer, ""), (PatchedBuffer, patch)):
        expected = f"{names} dispatch_wait_recv_cost_stats {more} {options}".split()
        assert list(inspect.signature(kind.low_latency_dispatch).parameters) == expected
    names = "self x topk_idx topk_weights handle use_logfmt zero_copy async_finish return_recv_hook out"
    for kind, more in ((Buffer, ""), (PatchedBuffer, f"{patch} is_x_in_round")):
        expected = f"{names} combine_wait_recv_cost_stats {more}".split()
        assert list(inspect.signature(kind.low_latency_combine).parameters) == expected
    expected = ["num_max_dispatch_tokens_per_rank", "hidden", "num_ranks", "num_experts"]
    assert list(inspect.signature(Buffer.get_low_latency_rdma_size_hint).parameters) == expected


def dispatched(rank: int) -> Batch:
    """Every token of rank 0 to expert 5, those of rank 1 to experts 5 and 0 in turn; nothing else."""
    tokens = TOKENS - 2 * rank
    batch = Batch.drawn(tokens, EXPERTS, rank)
    batch.topk_idx.fill_(-1)
    batch.topk_idx[:, 2] = 5
    if rank:
        batch.topk_idx[::2, 2] = 0
    return batch


def what_arrives() -> None:
    rank = dist.get_rank()
    batches, buffer = [dispatched(0), dispatched(1)], buffer_for(Buffer, EXPERTS)
    own = batches[rank]
    so_far, waited = torch.full((4,), 10), torch.zeros(2, dtype=torch.int64)
    (x, scales), count, handle, _, hook = buffer.low_latency_dispatch(
        own.x, own.topk_idx, TOKENS, EXPERTS, so_far, waited, return_recv_hook=True
    )
    hook()
    assert handle[2:] == (TOKENS, HIDDEN, EXPERTS)
    source, ranges = handle[:2]
    # rank 0 holds experts 0..3, rank 1 holds 4..7
    expected = {0: [(1, token) for token in (0, 2, 4)]} if rank == 0 else {
        1: [(0, token) for token in range(8)] + [(1, token) for token in (1, 3, 5)]
    }  # fmt: skip
    for expert in range(4):
        rows = expected.get(expert, [])
        assert int(count[expert]) == len(rows)
        assert source[expert, : len(rows)].tolist() == [token for _, token in rows]
        begin = 0
        for sender in range(2):
            number = sum(1 for one, _ in rows if one == sender)
            assert int(ranges[expert, sender]) == number | begin << 32
            begin += number
        if rows:
            sent = torch.stack([batches[sender].x[token] for sender, token in rows])
            values, factors = fp8.cast(sent)
            assert torch.equal(x[expert, : len(rows)].view(torch.uint8), values.view(torch.uint8))
            assert torch.equal(scales[expert, : len(rows)], factors)
        assert x[expert, len(rows) :].float().isnan().all()  # a use of what was not received would show
        assert scales[expert, len(rows) :].isnan().all()
    assert scales.stride(1) == 1  # rows innermost, as DeepGEMM reads them
    assert (so_far - 10).tolist() == count.tolist()
    assert int(waited.min()) > 0


def test_what_a_dispatch_delivers(ranks: Ranks):
    """Rows by source rank and token, their numbers, where they begin, counts that go on, NaN elsewhere."""
    ranks.run(what_arrives)


def combined_order() -> None:
    """Large terms that cancel: another order of the sum, or rounding on the way, gives other bits."""
    buffer = buffer_for(Buffer, EXPERTS)
    x = torch.full((1, HIDDEN), 1.0, dtype=torch.bfloat16)
    topk_idx, weights = torch.tensor([[7, 0, 4, 2]]), torch.tensor([[1e8, 3.0, -1e8, 0.5]])
    _, count, handle, _, _ = buffer.low_latency_dispatch(x, topk_idx, TOKENS, EXPERTS)
    rows = torch.ones(4, 2 * TOKENS, HIDDEN, dtype=torch.bfloat16)
    out, _, hook = buffer.low_latency_combine(rows, topk_idx, weights, handle)
    assert hook is None
    expected = ((torch.tensor(1e8) + 3.0) - 1e8) + 0.5
    assert (out == expected.bfloat16()).all()
    assert int(count.sum()) == 4


def test_a_combine_adds_in_float32_in_the_order_of_top_k(ranks: Ranks):
    ranks.run(combined_order)


def cast_once() -> None:
    buffer, batch = buffer_for(PatchedBuffer, EXPERTS), Batch.drawn(TOKENS, EXPERTS, dist.get_rank())
    x, hooks, packed = batch.x.clone(), [], None
    for round_id in range(2):
        result = buffer.low_latency_dispatch(
            x, batch.topk_idx, TOKENS, EXPERTS, use_expert_overlap=True, num_rounds=2, round_id=round_id,
            return_recv_hook=True,
        )  # fmt: skip
        x.zero_()  # what later rounds send was cast in round 0
        hooks.append(result[4])
        assert (result[0] is None) == (result[2] is None) == (round_id == 1)
        packed = packed or result
    for hook in hooks:
        hook()
    wanted, count, *_ = buffer_for(Buffer, EXPERTS).low_latency_dispatch(batch.x, batch.topk_idx, TOKENS, EXPERTS)
    assert torch.equal(packed[1], count)
    assert torch.equal(packed[0][0].view(torch.uint8), wanted[0].view(torch.uint8))


def test_rounds_cast_the_tokens_once(ranks: Ranks):
    ranks.run(cast_once)


def packed_scales() -> None:
    hidden, batch = 512, Batch.drawn(TOKENS, EXPERTS, 3, hidden=512)
    buffer = buffer_for(Buffer, EXPERTS, hidden=hidden)
    answers = [
        buffer.low_latency_dispatch(batch.x, batch.topk_idx, TOKENS, EXPERTS, round_scale=True, use_ue8m0=packed)[:2]
        for packed in (False, True)
    ]
    ((x, scales), count), ((again, exponents), _) = answers
    assert exponents.dtype == torch.int32
    assert exponents.shape == (4, 2 * TOKENS, 1)
    for expert, rows in enumerate(count.tolist()):
        assert torch.equal(x[expert, :rows].view(torch.uint8), again[expert, :rows].view(torch.uint8))
        powers = scales[expert, :rows].contiguous().log2()
        assert torch.equal(powers, powers.round())
        held = exponents[expert, :rows].flatten().view(torch.uint8).view(rows, 4)
        assert torch.equal(held.float() - 127.0, powers)


def test_scales_of_powers_of_two_are_packed_by_four(ranks: Ranks):
    ranks.run(packed_scales)


def test_the_cast():
    x = torch.randn(5, 256).bfloat16()
    x[2] = 0.0
    for round_scale in (False, True):
        values, scales = fp8.cast(x, round_scale)
        assert scales.shape == (5, 2)
        assert values.float().abs().max() <= 448.0
        torch.testing.assert_close(fp8.restore(values, scales), x.float(), rtol=0.07, atol=1e-6)


def a_silent_peer() -> str | None:
    rank, buffer = dist.get_rank(), buffer_for(Buffer, EXPERTS)
    if rank == 1:
        return None
    buffer.deadline_seconds = 0.2
    batch = dispatched(0)
    with pytest.raises(ProtocolTimeout) as error:
        buffer.low_latency_dispatch(batch.x, batch.topk_idx, TOKENS, EXPERTS)
    return str(error.value)


def test_a_peer_that_does_not_send_is_named(ranks: Ranks):
    message = "dispatch RECV on rank 0 of local expert 0 from rank 1: no signal came before the deadline"
    assert ranks.run(a_silent_peer)[0] == message


def other_sizes() -> None:
    rank, large = dist.get_rank(), 2 * EXPERTS
    buffer, plain = buffer_for(Buffer, large), buffer_for(Buffer, EXPERTS)
    for experts in (large, EXPERTS, large):
        buffer.clean_low_latency_buffer(TOKENS, HIDDEN, experts)
        batch, own = Batch.drawn(TOKENS, EXPERTS, rank), Experts.drawn(experts).of_rank(rank, 2)
        found = unsplit(buffer, batch, own, experts)
        if experts == EXPERTS:
            assert torch.equal(found, unsplit(plain, batch, own, experts))


def test_other_sizes_after_a_clean(ranks: Ranks):
    ranks.run(other_sizes)


def refusals() -> None:
    buffer, patched = buffer_for(Buffer, EXPERTS), buffer_for(PatchedBuffer, EXPERTS)
    batch = Batch.drawn(TOKENS, EXPERTS, 0)

    def refused(message: str, call: Any, *args: Any, **options: Any) -> None:
        with pytest.raises(PluginError, match=message):
            call(*args, **options)

    good = (batch.x, batch.topk_idx, TOKENS, EXPERTS)
    for target in (buffer, patched):
        call = target.low_latency_dispatch
        refused("low-latency call: x: found 8", call, batch.x.float(), *good[1:])
        refused("topk_idx: found torch.int32", call, batch.x, batch.topk_idx.int(), TOKENS, EXPERTS)
        refused("num_experts: found 7, expected a multiple of 2 ranks", call, *good[:3], 7)
        refused("num_rdma_bytes: found .*, expected at least", call, *good[:3], 64 * EXPERTS)
        refused("x: found 8 .*, expected <= 4", call, *good[:2], 4, EXPERTS)
        refused("async_finish", call, *good, async_finish=True, return_recv_hook=True)
        refused("use_logfmt, zero_copy", target.low_latency_combine, *good[:3], (0, 0, 0, 0, 8), use_logfmt=True)
    rounds = {"use_expert_overlap": True, "return_recv_hook": True}
    call = patched.low_latency_dispatch
    refused("num_rounds: found 3, expected a divisor of 4 local experts", call, *good, num_rounds=3, **rounds)
    refused("round_id: found 2", call, *good, num_rounds=2, round_id=2, **rounds)
    refused("return_recv_hook", call, *good, use_expert_overlap=True, num_rounds=2, round_id=0)
    refused("round_id: found 1, expected 0 first", call, *good, num_rounds=2, round_id=1, **rounds)
    refused("low_latency_mode", Buffer, dist.group.WORLD, num_rdma_bytes=128)
    refused("hidden: found 64", call, batch.x[:, :64], *good[1:])


def test_wrong_arguments_are_refused_in_one_line(ranks: Ranks):
    ranks.run(refusals)


def test_the_size_hint_covers_both_buffers():
    layout = LowLatencyLayout(TOKENS, HIDDEN, 2, EXPERTS)
    hint = Buffer.get_low_latency_rdma_size_hint(TOKENS, HIDDEN, 2, EXPERTS)
    assert hint == layout.total_bytes
    heap = torch.zeros(hint, dtype=torch.uint8)
    parts = [layout.signals(heap, buffer) for buffer in (0, 1)]
    parts += [layout.received(heap, buffer, layout.dispatch_bytes) for buffer in (0, 1)]
    parts += [layout.to_send(heap, buffer) for buffer in (0, 1)]
    for number, part in enumerate(parts):
        part.fill_(number + 1)
    assert all(bool((part == number + 1).all()) for number, part in enumerate(parts))  # none lies on another
