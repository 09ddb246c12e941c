"""The op list of one MoE layer: what is launched, on which stream, on how many SMs, after which events.

The list is the single description of a schedule: the checker proves it, the CPU reference runs it, the timeline model
times it, and the executor launches it. The idea of rounds and the four ways to overlap them are those of DeepEP PR 492.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["dispatch send", "dispatch recv", "gemm up", "gemm down", "combine send", "combine recv"]
Stream = Literal["main", "comm", "gemm"]  # main: the stream that runs the model (under capture: the capture stream)
Overlap = Literal["overlap-1", "overlap-2", "overlap-3", "overlap-4"]
Method = Literal["non-overlap", Overlap]
Api = Literal["patched", "stock"]  # of deep_ep.Buffer: with the arguments of PR 492, or as published


@dataclass(frozen=True)
class Op:
    """One launch, the same on every rank.

    kind: `gemm up` is the gate-up projection with its activation and cast, `gemm down` the down projection.
    num_sms: SMs that it may take, >= 1. A stock `deep_ep.Buffer` cannot be told: there it is all of the device's.
    round, num_rounds: which part of how many; the parts of a phase are equal slices of the local experts.
    experts: [first, end) of the local experts that it handles, on every rank alike.
    waits: events, each recorded by an earlier op of the list, that its stream waits for before it.
    records: event that its stream records after it.
    """

    kind: Kind
    stream: Stream
    num_sms: int
    round: int
    num_rounds: int
    experts: tuple[int, int]
    waits: tuple[str, ...] = ()
    records: str | None = None

    def __str__(self) -> str:
        part = f" {self.round}" if self.num_rounds > 1 else ""
        return f"{self.kind}{part} on {self.stream}"

    @property
    def is_comm(self) -> bool:
        """Whether it runs a kernel of DeepEP."""
        return not self.kind.startswith("gemm")


@dataclass(frozen=True)
class Schedule:
    """The ops of one MoE layer in the order of their launch; the next layer's begin when the last on `main` is done.

    num_rounds: into how many slices the experts are split where anything is. num_device_sms: SMs of the device.
    """

    method: Method
    api: Api
    num_rounds: int
    num_local_experts: int
    num_device_sms: int
    ops: tuple[Op, ...]

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self.ops)

    @property
    def num_calls(self) -> int:
        """How often it turns to the other half of the double buffer: a stock one does at every launch."""
        return 2 if self.api == "patched" else self.num_rounds + 1

    def of_kind(self, kind: Kind) -> list[Op]:
        return [op for op in self.ops if op.kind == kind]
