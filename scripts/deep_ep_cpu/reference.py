"""CPU reference of DeepEP's low-latency contract, over several processes: `Buffer` has the signatures of
`deep_ep.Buffer`, `PatchedBuffer` those of its pull request 492 (per-expert overlap).

Kept: one-sided writes; two buffers that calls take in turn; signals of the next buffer cleaned before a call publishes
its own; counts as words -n-1, flags of all experts also for no rows; receive hooks; entries -1; the FP8 cast, once per
dispatch; a combine that adds in float32 in top-k order and rounds once. Where DeepEP leaves the order of rows to chance
it is that of source ranks and tokens here, so that results can be compared bit for bit. Not kept: streams (calls run
when they are made), SM counts, NVLink, relaxed memory order, LogFMT, zero copy, shrinking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from eplb_plugin.errors import mismatch

from .fp8 import BLOCK
from .heap import LowLatencyLayout, SymmetricHeap
from .transfers import Received, Rounds, Transfer, pack_rows

Handle = tuple[torch.Tensor, torch.Tensor, int, int, int]  # Received.source and .ranges, tokens, hidden, experts
Hook = Callable[[], None]
UNSPLIT = Rounds(1, 0)


class EventOverlap:
    """Stands where a call on a GPU returns an event: here all is done by then."""

    def current_stream_wait(self) -> None:
        pass


class _LowLatency:
    """What both buffers share. deadline_seconds: when a RECV raises ProtocolTimeout."""

    deadline_seconds = 20.0

    def __init__(
        self,
        group: dist.ProcessGroup,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
    ) -> None:
        _require(low_latency_mode, "low_latency_mode", False, "True: the reference has no other")
        self.group, self.rank, self.group_size = group, group.rank(), group.size()
        self.low_latency_mode, self.num_rdma_bytes = low_latency_mode, num_rdma_bytes
        self._heap = SymmetricHeap(group, num_rdma_bytes)
        self._index = 0  # of the buffer that the next call takes
        self._received: Received | None = None  # what the rounds of the newest dispatch fill

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        return LowLatencyLayout(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts).total_bytes

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """Collective: all signals of both buffers to 0, as it must be before calls with other sizes."""
        layout = self._layout(num_max_dispatch_tokens_per_rank, hidden, num_experts)
        dist.barrier(self.group)
        for buffer in (0, 1):
            layout.signals(self._heap.own, buffer).zero_()
        dist.barrier(self.group)

    def _layout(self, tokens: int, hidden: int, experts: int) -> LowLatencyLayout:
        layout = LowLatencyLayout(tokens, hidden, self.group_size, experts)
        _require(experts % self.group_size == 0, "num_experts", experts, f"a multiple of {self.group_size} ranks")
        _require(hidden % BLOCK == 0, "hidden", hidden, f"a multiple of {BLOCK}")
        fits = layout.total_bytes <= self.num_rdma_bytes
        _require(fits, "num_rdma_bytes", self.num_rdma_bytes, f"at least {layout.total_bytes}")
        return layout

    def _transfer(self, rounds: Rounds, tokens: int, hidden: int, experts: int) -> Transfer:
        """This call on its buffer; after the last round the next call takes the other one."""
        layout, buffer = self._layout(tokens, hidden, experts), self._index
        self._index ^= int(rounds.last)
        return Transfer(self._heap, layout, self.rank, buffer, rounds, self.deadline_seconds)

    def _dispatch(
        self, rounds: Rounds, x: torch.Tensor, topk_idx: torch.Tensor, tokens: int, experts: int,
        so_far: torch.Tensor | None, waited: torch.Tensor | None, use_fp8: bool, round_scale: bool, use_ue8m0: bool,
        async_finish: bool, return_recv_hook: bool,
    ) -> tuple[Any, torch.Tensor, Handle, EventOverlap, Hook | None]:  # fmt: skip
        _require(x.dtype == torch.bfloat16 and len(x) <= tokens, "x", f"{len(x)} {x.dtype}", f"<= {tokens} bfloat16")
        _require(topk_idx.dtype == torch.int64, "topk_idx", topk_idx.dtype, "torch.int64")
        _require(not (async_finish and return_recv_hook), "async_finish", True, "False with return_recv_hook")
        transfer = self._transfer(rounds, tokens, x.shape[1], experts)
        if rounds.first:
            self._received = Received.empty(transfer.layout, use_fp8, use_fp8 and use_ue8m0)
            rows = transfer.layout.to_send(self._heap.own, transfer.buffer)[: len(x)]
            pack_rows(rows, x, use_fp8, round_scale)
        received = self._received
        _require(received is not None, "round_id", rounds.index, "0 first")
        assert received is not None
        if rounds.last:
            transfer.clean_next()
        transfer.send_rows(topk_idx)

        def receive() -> None:
            transfer.receive_rows(received, so_far, waited)

        if not return_recv_hook:
            receive()
        packed = (received.x, received.scales) if use_fp8 else received.x
        handle = (received.source, received.ranges, tokens, x.shape[1], experts)
        return packed, received.count, handle, EventOverlap(), receive if return_recv_hook else None

    def _combine(
        self, rounds: Rounds, x: torch.Tensor, first_expert: int, topk_idx: torch.Tensor, topk_weights: torch.Tensor,
        handle: Handle, async_finish: bool, return_recv_hook: bool, out: torch.Tensor | None,
        waited: torch.Tensor | None,
    ) -> tuple[torch.Tensor, EventOverlap, Hook | None]:  # fmt: skip
        """first_expert: the local expert that `x` begins with."""
        source, ranges, tokens, hidden, experts = handle
        _require(x.dtype == torch.bfloat16, "x", x.dtype, "torch.bfloat16")
        _require(not (async_finish and return_recv_hook), "async_finish", True, "False with return_recv_hook")
        transfer = self._transfer(rounds, tokens, hidden, experts)
        if rounds.first:
            transfer.clean_next()
        transfer.return_rows(x, first_expert, source, ranges)
        combined = out if out is not None else torch.empty((len(topk_idx), hidden), dtype=torch.bfloat16)

        def receive() -> None:
            transfer.reduce_rows(topk_idx, topk_weights, combined, waited)

        if not return_recv_hook:
            receive()
        return combined, EventOverlap(), receive if return_recv_hook else None


class Buffer(_LowLatency):
    """The low-latency half of `deep_ep.Buffer` as published."""

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Any, torch.Tensor, Handle, EventOverlap, Hook | None]:
        """x: [tokens, hidden] bfloat16; topk_idx: [tokens, k] int64, -1 = none. Returns as deep_ep.Buffer does."""
        return self._dispatch(
            UNSPLIT, x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts, cumulative_local_expert_recv_stats,
            dispatch_wait_recv_cost_stats, use_fp8, round_scale, use_ue8m0, async_finish, return_recv_hook,
        )  # fmt: skip

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Handle,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Hook | None]:
        """x: [local experts, ranks * tokens, hidden] bfloat16 -> [tokens, hidden]. Returns as deep_ep.Buffer does."""
        _require(not use_logfmt and not zero_copy, "use_logfmt, zero_copy", True, "False: the reference has neither")
        return self._combine(
            UNSPLIT, x, 0, topk_idx, topk_weights, handle, async_finish, return_recv_hook, out,
            combine_wait_recv_cost_stats,
        )  # fmt: skip


class PatchedBuffer(_LowLatency):
    """With the arguments of DeepEP's pull request 492: a call is for the experts of one round.

    Round 0 of a dispatch returns the tensors that all its rounds fill, later ones None. The next buffer is cleaned in
    the last round of a dispatch and in the first of a combine. The hook of any round of a combine receives them all.
    """

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_expert_overlap: bool = False,
        num_rounds: int = -1,
        round_id: int = -1,
        send_num_sms: int = -1,
        recv_num_sms: int = -1,
        hook_use_comm_stream: bool = False,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Any, Any, Any, EventOverlap, Hook | None]:
        rounds = self._rounds(use_expert_overlap, num_rounds, round_id, num_experts, return_recv_hook)
        packed, count, handle, event, hook = self._dispatch(
            rounds, x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts, cumulative_local_expert_recv_stats,
            dispatch_wait_recv_cost_stats, use_fp8, round_scale, use_ue8m0, async_finish, return_recv_hook,
        )  # fmt: skip
        return (packed, count, handle, event, hook) if rounds.first else (None, None, None, event, hook)

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Handle,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
        use_expert_overlap: bool = False,
        num_rounds: int = -1,
        round_id: int = -1,
        send_num_sms: int = -1,
        recv_num_sms: int = -1,
        hook_use_comm_stream: bool = False,
        is_x_in_round: bool = False,
    ) -> tuple[torch.Tensor, EventOverlap, Hook | None]:
        _require(not use_logfmt and not zero_copy, "use_logfmt, zero_copy", True, "False: the reference has neither")
        rounds = self._rounds(use_expert_overlap, num_rounds, round_id, handle[4], return_recv_hook)
        first_expert = rounds.experts(handle[4] // self.group_size).start if is_x_in_round else 0
        return self._combine(
            rounds, x, first_expert, topk_idx, topk_weights, handle, async_finish, return_recv_hook, out,
            combine_wait_recv_cost_stats,
        )  # fmt: skip

    def _rounds(self, overlap: bool, count: int, index: int, experts: int, hook: bool) -> Rounds:
        if not overlap:
            return UNSPLIT
        local = experts // self.group_size
        _require(count >= 1 and local % count == 0, "num_rounds", count, f"a divisor of {local} local experts")
        _require(0 <= index < count, "round_id", index, f"0..{count - 1}")
        _require(hook, "return_recv_hook", hook, "True with use_expert_overlap")
        return Rounds(count, index)


def _require(holds: bool, what: str, found: object, expected: object) -> None:
    if not holds:
        raise mismatch(f"low-latency call: {what}", found=found, expected=expected, fix="see deep_ep.Buffer")
