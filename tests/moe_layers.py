"""A small FP8 MoE layer over several ranks, on the CPU reference of DeepEP and DeepGEMM."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from deep_ep_cpu import fp8
from deep_ep_cpu.grouped_gemm import m_grouped_fp8_gemm_nt_masked, silu_mul_quant
from deep_ep_cpu.reference import Buffer, EventOverlap, PatchedBuffer
from eplb_plugin.peo.cuda import RoundBuffer, RoundInput
from eplb_plugin.peo.ops import Schedule
from eplb_plugin.peo.streams import InOrder

HIDDEN, INTER, TOP_K, TOKENS = 256, 128, 4, 8
DEVICE_SMS = 78
SMS = {"deepep_send_num_sms": 20, "deepep_recv_num_sms": 12, "up_deepgemm_num_sms": 50, "down_deepgemm_num_sms": 54}


class Lines(logging.Handler):
    """What the plugin logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logger = logging.getLogger("eplb_plugin")
        logger.setLevel("INFO")
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def fake_modules(buffer: type[Buffer] | type[PatchedBuffer]) -> dict[str, ModuleType]:
    """`deep_ep` and `deep_gemm` as the engines import them: the CPU reference under their names.

    deep_gemm.log: (SMs that were allowed, groups) of every GEMM.
    """
    deep_ep, deep_gemm = ModuleType("deep_ep"), ModuleType("deep_gemm")
    deep_ep.Buffer, deep_ep.Config, deep_ep.EventOverlap = buffer, object, EventOverlap
    state = {"sms": DEVICE_SMS}
    deep_gemm.log = []

    def gemm(a: Any, b: Any, d: torch.Tensor, masked_m: torch.Tensor, expected_m: int, **_: Any) -> None:
        deep_gemm.log.append((state["sms"], len(d)))
        m_grouped_fp8_gemm_nt_masked(a, b, d, masked_m, expected_m)

    deep_gemm.m_grouped_fp8_gemm_nt_masked = deep_gemm.fp8_m_grouped_gemm_nt_masked = gemm  # newer, older name
    deep_gemm.get_num_sms = lambda: state["sms"]
    deep_gemm.set_num_sms = lambda num_sms: state.update(sms=num_sms)
    deep_gemm.get_mk_alignment_for_contiguous_layout = lambda: 128
    for module in (deep_ep, deep_gemm):
        module.__spec__ = ModuleSpec(module.__name__, None)  # how engines see that a package is installed
    return {"deep_ep": deep_ep, "deep_gemm": deep_gemm}


def quantized(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weights: [E, n, k] -> e4m3, scales [E, n / 128, k / 128]."""
    experts, n, k = weights.shape
    blocks = weights.view(experts, n // 128, 128, k // 128, 128)
    scales = blocks.abs().amax(dim=(2, 4)) / fp8.LARGEST
    return (blocks / scales[:, :, None, :, None]).to(torch.float8_e4m3fn).view(experts, n, k), scales


@dataclass
class Batch:
    """x: [tokens, hidden] bfloat16; topk_idx, topk_weights: [tokens, k]."""

    x: torch.Tensor
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor

    @classmethod
    def drawn(cls, tokens: int, experts: int, seed: int, hidden: int = HIDDEN) -> Batch:
        """Some entries are -1, as of padding, and one token has no expert at all."""
        drawn = torch.Generator().manual_seed(seed)
        x = torch.randn(tokens, hidden, generator=drawn).to(torch.bfloat16)
        topk_idx = torch.rand(tokens, experts, generator=drawn).topk(TOP_K, dim=-1)[1]
        topk_idx[torch.rand(tokens, TOP_K, generator=drawn) < 0.1] = -1
        if tokens > 2:
            topk_idx[1] = -1
        return cls(x, topk_idx, torch.rand(tokens, TOP_K, generator=drawn))


class Experts:
    """w13: [experts, 2 * inter, hidden], w2: [experts, hidden, inter], each (e4m3, scales)."""

    def __init__(self, w13: tuple[torch.Tensor, torch.Tensor], w2: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.w13, self.w2 = w13, w2

    @classmethod
    def drawn(cls, experts: int, hidden: int = HIDDEN, inter: int = INTER) -> Experts:
        drawn = torch.Generator().manual_seed(1)
        w13 = torch.randn(experts, 2 * inter, hidden, generator=drawn) / hidden**0.5
        w2 = torch.randn(experts, hidden, inter, generator=drawn) / inter**0.5
        return cls(quantized(w13), quantized(w2))

    def of_rank(self, rank: int, ranks: int) -> Experts:
        size = len(self.w13[0]) // ranks
        return self[rank * size : (rank + 1) * size]

    def __getitem__(self, part: slice) -> Experts:
        return Experts((self.w13[0][part], self.w13[1][part]), (self.w2[0][part], self.w2[1][part]))

    def compute(self, x: torch.Tensor, scales: torch.Tensor | None, masked_m: torch.Tensor) -> torch.Tensor:
        """[E, P, hidden] bfloat16; rows that nothing was received for stay NaN."""
        values, factors = (x, scales) if scales is not None else _cast(x, masked_m)
        gate_up = torch.full((*x.shape[:2], self.w13[0].shape[1]), torch.nan, dtype=torch.bfloat16)
        m_grouped_fp8_gemm_nt_masked((values, factors), self.w13, gate_up, masked_m, 16)
        out = torch.full((*x.shape[:2], self.w2[0].shape[1]), torch.nan, dtype=torch.bfloat16)
        m_grouped_fp8_gemm_nt_masked(silu_mul_quant(gate_up, masked_m), self.w2, out, masked_m, 16)
        return out

    def exactly(self, batch: Batch) -> torch.Tensor:
        """[tokens, hidden] float32 without any communication; self: all experts."""
        x, out = fp8.restore(*fp8.cast(batch.x)), torch.zeros(batch.x.shape)
        for token, (ids, weights) in enumerate(zip(batch.topk_idx.tolist(), batch.topk_weights, strict=True)):
            for expert, weight in zip(ids, weights, strict=True):
                if expert >= 0:
                    one = self[expert : expert + 1]
                    gate, up = (_whole(one.w13) @ x[token]).to(torch.bfloat16).float().chunk(2)
                    hidden = fp8.restore(*fp8.cast((torch.nn.functional.silu(gate) * up)[None]))[0]
                    out[token] += (_whole(one.w2) @ hidden).to(torch.bfloat16).float() * weight
        return out


def _cast(x: torch.Tensor, masked_m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    known = torch.arange(x.shape[1])[None] < masked_m[:, None]
    return fp8.cast(torch.where(known[..., None], x, 0.0))


def _whole(weight: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[n, k] float32 of one expert."""
    return fp8.restore(weight[0][0], weight[1][0].repeat_interleave(128, dim=0))


def buffer_for(kind: type[Any], experts: int, tokens: int = TOKENS, hidden: int = HIDDEN) -> Any:
    group = dist.group.WORLD
    size = kind.get_low_latency_rdma_size_hint(tokens, hidden, dist.get_world_size(), experts)
    return kind(group, num_rdma_bytes=size, low_latency_mode=True)


def unsplit(buffer: Any, batch: Batch, own: Experts, experts: int, **options: Any) -> torch.Tensor:
    """The layer as an engine runs it."""
    packed, count, handle, _, hook = buffer.low_latency_dispatch(
        batch.x, batch.topk_idx, TOKENS, experts, return_recv_hook=True, **options
    )
    hook()
    x, scales = packed if isinstance(packed, tuple) else (packed, None)
    rows = own.compute(x, scales, count)
    out, _, hook = buffer.low_latency_combine(rows, batch.topk_idx, batch.topk_weights, handle, return_recv_hook=True)
    hook()
    return out


def split(buffer: Any, schedule: Schedule, batch: Batch, own: Experts, experts: int, **options: Any) -> torch.Tensor:
    """The layer by a schedule: the executor in the buffer's place."""
    rounds = RoundBuffer(buffer, schedule, InOrder(), no_limit)
    _, _, handle, _, hook = rounds.low_latency_dispatch(
        batch.x, batch.topk_idx, TOKENS, experts, return_recv_hook=True, **options
    )
    hook()

    def compute(part: RoundInput) -> torch.Tensor:
        for _ in range(2):
            with rounds.gemm():
                pass
        return own[part.first : part.end].compute(part.x, part.scales, part.masked_m)

    rounds.run_experts(compute)
    first = torch.empty(0, *batch.x.shape[1:], dtype=torch.bfloat16)
    out, _, hook = rounds.low_latency_combine(first, batch.topk_idx, batch.topk_weights, handle, return_recv_hook=True)
    hook()
    return out


@contextmanager
def no_limit(num_sms: int) -> Iterator[None]:
    yield
