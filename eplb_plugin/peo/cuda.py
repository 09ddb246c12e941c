"""The executor: launches a checked op list on deep_ep, in the place of the one buffer that an engine calls.

An engine dispatches, computes and combines once for a layer, with arguments of its own. `RoundBuffer` stands for its
`deep_ep.Buffer` during that layer and turns the three steps into the schedule's ops. So all that an engine does around
them (ids, scales, statistics, shared experts) stays its own.

Ops are launched phase by phase: all of the dispatch, all GEMMs, all of the combine. On a device that is the order of
the list, because no stream of it has an op of an earlier phase behind one of a later; `RoundBuffer` refuses others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from ..errors import mismatch
from .ops import Api, Op, Schedule
from .streams import InOrder

Limit = Callable[[int], AbstractContextManager[None]]  # SMs that DeepGEMM may use, inside
ROUND_ARGUMENTS = {
    "use_expert_overlap", "num_rounds", "round_id", "send_num_sms", "recv_num_sms", "hook_use_comm_stream",
}  # fmt: skip


def choose_api(buffer: Any, stock_api: bool) -> tuple[Api | None, str]:
    """Which API of a `deep_ep.Buffer` (class or object) to use, or None and the reason in one line.

    Known from signatures alone: builds with the patch carry the version numbers of those without.
    stock_api: whether to do what is possible without the patch.
    """
    calls = ((buffer.low_latency_dispatch, ROUND_ARGUMENTS),
             (buffer.low_latency_combine, ROUND_ARGUMENTS | {"is_x_in_round"}))  # fmt: skip
    for call, wanted in calls:
        if missing := sorted(wanted - set(inspect.signature(call).parameters)):
            fix = "install a deep_ep that has DeepEP's pull request 492, or set peo.stock_api"
            reason = f"this deep_ep has no {', '.join(missing)} in {call.__name__}; fix: {fix}"
            return ("stock", "") if stock_api else (None, reason)
    return "patched", ""


class RoundInput(NamedTuple):
    """What the GEMMs of one round get. n: its local experts [first, end); P: rows per expert.

    x: [n, P, hidden]; scales: [n, P, hidden / 128] or None; masked_m: [n] int32 rows of each that count.
    """

    first: int
    end: int
    x: torch.Tensor
    scales: torch.Tensor | None
    masked_m: torch.Tensor


class RoundBuffer:
    """Takes the calls of one layer to `buffer`; whatever else it is asked for is the buffer's.

    schedule: checked by `protocol.check`. streams: of this schedule. limit_gemm_sms: see `gemm`.
    """

    def __init__(self, buffer: Any, schedule: Schedule, streams: InOrder, limit_gemm_sms: Limit) -> None:
        self._buffer, self._schedule, self._streams, self._limit = buffer, schedule, streams, limit_gemm_sms
        _launchable_by_phase(schedule)
        self._hooks: dict[int, Callable[[], None]] = {}
        self._inputs: dict[int, tuple[Any, torch.Tensor, tuple[Any, ...]]] = {}  # by round: packed, count, handle
        self._outputs: dict[int, torch.Tensor] = {}
        self._count: torch.Tensor | None = None
        self._event: Any = None
        self._shares: list[int] = []  # SMs of the GEMMs that are still to come in this round
        self._stock_rounds = schedule.api == "stock" and schedule.num_rounds > 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)

    def low_latency_dispatch(
        self, x: torch.Tensor, topk_idx: torch.Tensor, num_max_dispatch_tokens_per_rank: int, num_experts: int,
        **options: Any,
    ) -> tuple[Any, torch.Tensor, Any, Any, Callable[[], None]]:  # fmt: skip
        """As a buffer's with return_recv_hook: the SENDs before the first RECV now, the rest in the hook."""
        _hooks_wanted(options)
        self._streams.begin()
        recvs = {op.round: op for op in self._schedule.of_kind("dispatch recv")}
        local = self._schedule.num_local_experts

        def send(op: Op) -> None:
            ids, more = topk_idx, {}
            if op.num_rounds > 1 and self._stock_rounds:
                ids = _only(topk_idx, op.experts, local)
            elif op.num_rounds > 1:
                more = _round_arguments(op, recvs[op.round])
            result = self._buffer.low_latency_dispatch(
                x, ids, num_max_dispatch_tokens_per_rank, num_experts, **options, **more
            )
            self._inputs[op.round], self._event, self._hooks[op.round] = result[:3], result[3], result[4]

        def recv(op: Op) -> None:
            self._hooks.pop(op.round)()
            if self._stock_rounds:
                first, end = op.experts
                assert self._count is not None
                self._count[first:end].copy_(self._inputs[op.round][1][first:end])

        ops = [op for op in self._schedule if op.kind in ("dispatch send", "dispatch recv")]
        until = next(place for place, op in enumerate(ops) if op.kind == "dispatch recv")

        def launch(part: list[Op]) -> None:
            for op in part:
                with self._streams.launch(op):
                    send(op) if op.kind == "dispatch send" else recv(op)

        def hook() -> None:
            launch(ops[until:])
            if self._stock_rounds and self._schedule.num_rounds % 2 == 0:
                # rounds and one combine are an odd number of calls, and a graph must leave the buffers as it found them
                self._buffer.low_latency_dispatch(
                    x[:0], topk_idx[:0], num_max_dispatch_tokens_per_rank, num_experts, **options
                )[4]()

        launch(ops[:until])
        packed, count, handle = self._inputs[0]
        self._count = torch.empty_like(count) if self._stock_rounds else count
        return packed, self._count, handle, self._event, hook

    def run_experts(self, compute: Callable[[RoundInput], torch.Tensor]) -> None:
        """compute: launches the two GEMMs of a round, each inside of `gemm()`; returns their [n, P, hidden] output."""
        for up, down in zip(self._schedule.of_kind("gemm up"), self._schedule.of_kind("gemm down"), strict=True):
            first, end = up.experts
            packed, count, _ = self._inputs[up.round if self._stock_rounds else 0]
            x, scales = packed if isinstance(packed, tuple) else (packed, None)
            part = RoundInput(first, end, x[first:end], None if scales is None else scales[first:end], count[first:end])
            self._shares = [up.num_sms, down.num_sms]
            with self._streams.launch(up, down):
                self._outputs[up.round] = compute(part)
            assert not self._shares, f"{up}: not as many GEMMs as planned"

    def gemm(self) -> AbstractContextManager[None]:
        """Inside, DeepGEMM keeps to the SMs of the next GEMM of the round that is being computed."""
        return self._limit(self._shares.pop(0))

    def low_latency_combine(
        self, x: torch.Tensor, topk_idx: torch.Tensor, topk_weights: torch.Tensor, handle: Any, **options: Any
    ) -> tuple[torch.Tensor, Any, Callable[[], None]]:
        """As a buffer's with return_recv_hook: the SENDs now, the RECV in the hook. x and handle are known already."""
        _hooks_wanted(options)
        recv = self._schedule.of_kind("combine recv")[0]
        result: tuple[torch.Tensor, Any, Callable[[], None]] | None = None
        for op in self._schedule.of_kind("combine send"):
            with self._streams.launch(op):
                more = {"is_x_in_round": True, **_round_arguments(op, recv)} if op.num_rounds > 1 else {}
                rows = self._outputs[op.round] if op.num_rounds > 1 else self._whole_output(x)
                result = self._buffer.low_latency_combine(
                    rows, topk_idx, topk_weights, self._whole_handle(), **options, **more
                )
                options["out"] = result[0]
        assert result is not None
        combined, event, last_hook = result

        def hook() -> None:
            with self._streams.launch(recv):
                last_hook()

        return combined, event, hook

    def _whole_output(self, x: torch.Tensor) -> torch.Tensor:
        """[local experts, P, hidden]: the engine's tensor, or those of the rounds if it knows only one of them."""
        return x if len(x) == self._schedule.num_local_experts else torch.cat([*self._outputs.values()])

    def _whole_handle(self) -> tuple[Any, ...]:
        """One handle for all experts: every expert's row and token numbers from the round that received them."""
        if not self._stock_rounds:
            return self._inputs[0][2]
        parts = []
        for op in self._schedule.of_kind("dispatch recv"):
            first, end = op.experts
            parts.append([part[first:end] for part in self._inputs[op.round][2][:2]])
        source, ranges = (torch.cat(column) for column in zip(*parts, strict=True))
        return (source, ranges, *self._inputs[0][2][2:])


def _round_arguments(op: Op, recv: Op) -> dict[str, Any]:
    return {
        "use_expert_overlap": True,
        "num_rounds": op.num_rounds,
        "round_id": op.round,
        "send_num_sms": op.num_sms,
        "recv_num_sms": recv.num_sms,
        "hook_use_comm_stream": recv.stream == "comm",
    }


def _only(topk_idx: torch.Tensor, experts: tuple[int, int], local: int) -> torch.Tensor:
    """topk_idx with -1 for every expert that is not, on its rank, one of `experts`."""
    place = topk_idx % local
    wanted = (topk_idx >= 0) & (place >= experts[0]) & (place < experts[1])
    return torch.where(wanted, topk_idx, -1)


def _hooks_wanted(options: dict[str, Any]) -> None:
    if options.get("async_finish") or not options.get("return_recv_hook"):
        expected = "return_recv_hook without async_finish"
        raise mismatch("PEO: low-latency call", found=options, expected=expected, fix="remove peo: from the settings")


def _launchable_by_phase(schedule: Schedule) -> None:
    """Raises PluginError where launching by phases would change the order on a stream."""
    phase: dict[str, int] = {}
    order = {"dispatch": 0, "gemm": 1, "combine": 2}
    for op in schedule:
        now = order[op.kind.split()[0]]
        if phase.get(op.stream, 0) > now:
            expected = "dispatch, then GEMMs, then combine on each stream"
            fix = "choose another peo.method"
            raise mismatch(f"PEO schedule {schedule.method}", found=f"{op} late", expected=expected, fix=fix)
        phase[op.stream] = now
