"""One rank: the layer unsplit and by every schedule, timed; outputs compared bit for bit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from deep_ep_cpu import fp8, grouped_gemm, reference
from eplb_plugin.peo.cuda import RoundBuffer, RoundInput, choose_api
from eplb_plugin.peo.ops import Method, Schedule
from eplb_plugin.peo.protocol import check
from eplb_plugin.peo.schedule import make_schedule
from eplb_plugin.peo.streams import CudaStreams, InOrder

from .case import Case, routed, selections

REFERENCE_SMS = 132  # named in the schedules; the reference has none


@dataclass
class Layer:
    """One rank's part of a layer, with weights of its own."""

    case: Case
    device: torch.device
    gemm: Any
    w13: tuple[torch.Tensor, torch.Tensor]
    w2: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def drawn(cls, case: Case, rank: int) -> Layer:
        device = torch.device("cuda", torch.cuda.current_device()) if case.real else torch.device("cpu")
        drawn = torch.Generator().manual_seed(case.seed * 1000 + rank)
        local = case.experts // case.ranks

        def weights(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            values = (torch.randn(local, n, k, generator=drawn) / k**0.5).to(torch.float8_e4m3fn)
            return values.to(device), torch.ones(local, n // fp8.BLOCK, k // fp8.BLOCK, device=device)

        gemm = import_module("deep_gemm") if case.real else grouped_gemm
        return cls(case, device, gemm, weights(2 * case.inter, case.hidden), weights(case.hidden, case.inter))

    def experts(self, part: RoundInput, limited: Callable[[], Any]) -> torch.Tensor:
        """[n, P, hidden] of local experts [first, end). limited: SMs of the next GEMM."""
        w13, w2 = ([tensor[part.first : part.end] for tensor in weight] for weight in (self.w13, self.w2))
        assert part.scales is not None
        n, rows, _ = part.x.shape
        expected = max(1, self.case.tokens * self.case.top_k * self.case.ranks // self.case.experts)
        gate_up = torch.empty(n, rows, w13[0].shape[1], dtype=torch.bfloat16, device=self.device)
        with limited():
            self.gemm.m_grouped_fp8_gemm_nt_masked((part.x, part.scales), tuple(w13), gate_up, part.masked_m, expected)
        if self.case.real:
            gate, up = gate_up.float().chunk(2, dim=-1)
            hidden = fp8.cast(torch.nn.functional.silu(gate) * up)
        else:
            hidden = grouped_gemm.silu_mul_quant(gate_up, part.masked_m)
        out = torch.empty(n, rows, w2[0].shape[1], dtype=torch.bfloat16, device=self.device)
        with limited():
            self.gemm.m_grouped_fp8_gemm_nt_masked(hidden, tuple(w2), out, part.masked_m, expected)
        return out


class Stopwatch:
    """Seconds of named parts, by this rank's clock; on a GPU each part is waited for."""

    def __init__(self, real: bool) -> None:
        self.real = real
        self.parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.real:
            torch.cuda.synchronize()
        self.parts[name] = time.perf_counter() - began


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def unsplit(buffer: Any, layer: Layer, batch: Batch, watch: Stopwatch) -> torch.Tensor:
    (x, ids, weights), case = batch, layer.case
    with watch.part("dispatch send"):
        packed, count, handle, _, hook = buffer.low_latency_dispatch(
            x, ids, case.tokens, case.experts, return_recv_hook=True
        )
    with watch.part("dispatch recv"):
        hook()
    with watch.part("experts"):
        rows = layer.experts(RoundInput(0, len(count), packed[0], packed[1], count), lambda: _no_limit(0))
    with watch.part("combine send"):
        out, _, hook = buffer.low_latency_combine(rows, ids, weights, handle, return_recv_hook=True)
    with watch.part("combine recv"):
        hook()
    return out


def by_schedule(
    buffer: Any, layer: Layer, batch: Batch, schedule: Schedule, streams: InOrder, watch: Stopwatch
) -> torch.Tensor:
    (x, ids, weights), case = batch, layer.case
    rounds = RoundBuffer(buffer, schedule, streams, layer_limit(layer))
    with watch.part("layer"):
        _, _, handle, _, hook = rounds.low_latency_dispatch(x, ids, case.tokens, case.experts, return_recv_hook=True)
        hook()
        rounds.run_experts(lambda part: layer.experts(part, rounds.gemm))
        out, _, hook = rounds.low_latency_combine(x[:0, None], ids, weights, handle, return_recv_hook=True)
        hook()
    return out


def layer_limit(layer: Layer) -> Callable[[int], Any]:
    @contextmanager
    def limit(num_sms: int) -> Iterator[None]:
        before = layer.gemm.get_num_sms()
        layer.gemm.set_num_sms(num_sms)
        yield
        layer.gemm.set_num_sms(before)

    return limit if layer.case.real else _no_limit


@contextmanager
def _no_limit(num_sms: int) -> Iterator[None]:
    yield


def schedules(case: Case, kinds: list[Any], num_sms: int) -> dict[str, tuple[Any, Schedule]]:
    """name -> buffer class and list, of those that can run: all four with the patch, the dispatch alone without."""
    found: dict[str, tuple[Any, Schedule]] = {}
    for kind in kinds:
        api, _ = choose_api(kind, stock_api=True)
        assert api is not None
        methods: tuple[Method, ...] = ("overlap-1", "overlap-2", "overlap-3", "overlap-4")
        for method in methods if api == "patched" else methods[1:2]:
            made = make_schedule(
                method, num_rounds=case.rounds, num_local_experts=case.experts // case.ranks, num_device_sms=num_sms,
                api=api,
            )  # fmt: skip
            check(made, num_ranks=case.ranks)
            found["stock overlap-2" if api == "stock" else method] = (kind, made)
    return found


def measure(case: Case) -> list[dict[str, Any]] | None:
    """On every rank of the default group; rank 0 gets the figures of all, one entry for each factor."""
    rank, group = dist.get_rank(), dist.group.WORLD
    real = [import_module("deep_ep").Buffer] if case.real else []
    kinds = real or [reference.Buffer, reference.PatchedBuffer]
    buffers = {}
    for kind in kinds:
        num_bytes = kind.get_low_latency_rdma_size_hint(case.tokens, case.hidden, case.ranks, case.experts)
        queues = {"num_qps_per_rank": case.experts // case.ranks}
        buffers[kind] = kind(group, num_rdma_bytes=num_bytes, low_latency_mode=True, **queues)
    layer = Layer.drawn(case, rank)
    arms = schedules(case, kinds, layer.gemm.get_num_sms() if case.real else REFERENCE_SMS)
    streams = {
        name: CudaStreams(made, buffers[kind], layer.device) if case.real else InOrder()
        for name, (kind, made) in arms.items()
    }
    results = []
    for factor in case.factors:
        ids = routed(case, factor)
        own = torch.from_numpy(ids[rank]).to(layer.device)
        drawn = torch.Generator().manual_seed(rank)
        x = torch.randn(case.tokens, case.hidden, generator=drawn).to(torch.bfloat16).to(layer.device)
        batch = (x, own, torch.rand(case.tokens, case.top_k, generator=drawn).to(layer.device))
        parts = _timed(case, partial(unsplit, buffers[kinds[0]], layer, batch))
        expected = parts.pop("output")
        figures: dict[str, Any] = {"parts": parts, "layers": {"unsplit": sum(parts.values())}, "same bits": {}}
        for name, (kind, made) in arms.items():
            run = partial(by_schedule, buffers[kind], layer, batch, made, streams[name])
            found = _timed(case, run)
            figures["same bits"][name] = torch.equal(found["output"], expected)
            figures["layers"][name] = found["layer"]
        every: list[Any] = [None] * case.ranks
        dist.all_gather_object(every, figures, group)
        served = selections(case, ids)
        results.append(
            {
                "target": factor,
                "actual": float(served.max() / served.mean()),
                "selections": served.tolist(),
                "sent": np.full(case.ranks, case.tokens * case.top_k).tolist(),
                "ranks": every,
            }
        )
    return results if rank == 0 else None


def _timed(case: Case, run: Callable[[Stopwatch], torch.Tensor]) -> dict[str, Any]:
    """Median seconds of every part over the repeats, after one that is not counted, and the output."""
    seconds: dict[str, list[float]] = {}
    for repeat in range(case.repeats + 1):
        dist.barrier()
        watch = Stopwatch(case.real)
        output = run(watch)
        for name, value in watch.parts.items() if repeat else ():
            seconds.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in seconds.items()} | {"output": output}
