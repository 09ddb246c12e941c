"""A model of when each op runs: streams, SMs, links and the GEMM roofline. A model, not a measurement.

Every op begins when it heads its stream, the events that it waits for are over, and its SMs are free; DeepEP's kernels
are cooperative, so they wait for all of theirs. SMs are exclusive; a rank has one link, first come, first served.
Not modelled: HBM traffic of copies beside a GEMM, NVLink beside the network, tails of tiles, the shared expert.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .cost import Traffic
from .ops import Op, Schedule, Stream
from .presets import Hardware
from .protocol import check

Floats = NDArray[np.float64]
MODEL_NOT_MEASUREMENT = "model, not measurement"


@dataclass(frozen=True)
class Span:
    """op: place in the schedule; start, end: µs."""

    rank: int
    op: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """spans: of every simulated rank, in order of their end; ranks of equal load are simulated once."""

    schedule: Schedule
    spans: tuple[Span, ...]

    @property
    def total_us(self) -> float:
        """When the slowest rank has its layer."""
        return max(span.end for span in self.spans)

    @property
    def slowest_rank(self) -> int:
        return max(self.spans, key=lambda span: span.end).rank

    def of_rank(self, rank: int) -> list[Span]:
        return [span for span in self.spans if span.rank == rank]


def simulate(schedule: Schedule, hardware: Hardware, traffic: Traffic) -> Timeline:
    """Run the list on every rank at once; all begin the layer together. Raises PluginError for an illegal list."""
    check(schedule)
    first = np.unique(traffic.shares, axis=0, return_index=True)[1]  # equal ranks do equal things at equal times
    return _Run(schedule, hardware, traffic, sorted(int(rank) for rank in first)).run()


def lower_bounds(schedule: Schedule, hardware: Hardware, traffic: Traffic) -> dict[str, float]:
    """µs that no order can beat, by resource, for the rank that needs it most."""
    every = (0, traffic.num_local_experts)
    sent = sum(traffic.sent_bytes(kind, every) for kind in ("dispatch send", "combine send"))
    received = sum(traffic.received_bytes(kind, every) for kind in ("dispatch send", "combine send"))
    gemm: Floats = np.zeros(traffic.num_ranks)
    for op in schedule:
        if not op.is_comm:
            gemm = gemm + gemm_us(op, hardware, traffic, hardware.num_sms) - hardware.launch_us
    link = 1e3 * hardware.link_gbs
    return {
        "link out": float(np.max(sent)) / link, "link in": float(np.max(received)) / link,
        "gemm": float(gemm.max()),
    }  # fmt: skip


def gemm_us(op: Op, hardware: Hardware, traffic: Traffic, num_sms: int) -> Floats:
    """[ranks] µs of a GEMM on that many SMs: the roofline of weights from HBM and padded operations."""
    flop, weights = traffic.gemm(op.kind, op.experts)
    share = num_sms / hardware.num_sms
    speed = hardware.fp8_tflops * hardware.gemm_efficiency * share * 1e6
    bandwidth = hardware.hbm_gbs * hardware.hbm_efficiency * min(1.0, share / hardware.hbm_share_of_sms) * 1e3
    return hardware.launch_us + np.maximum(flop / speed, weights / bandwidth)


@dataclass
class _Rank:
    free_sms: int
    heads: dict[Stream, int] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)
    running: set[Stream] = field(default_factory=set)
    out_free: float = 0.0  # when the link out of it is
    in_free: float = 0.0


class _Run:
    def __init__(self, schedule: Schedule, hardware: Hardware, traffic: Traffic, ranks: list[int]) -> None:
        self.schedule, self.hardware, self.traffic, self.names = schedule, hardware, traffic, ranks
        self.ops = schedule.ops
        self.streams: dict[Stream, list[int]] = {}
        self.recorded: dict[str, int] = {}
        self.recv_of: dict[int, int] = {}  # SEND -> the RECV that waits for it
        for place, op in enumerate(self.ops):
            self.streams.setdefault(op.stream, []).append(place)
            if op.records:
                self.recorded[op.records] = place
        for place, op in enumerate(self.ops):
            for other, send in enumerate(self.ops):
                same = op.kind == send.kind.replace("send", "recv") and send.kind.endswith("send")
                if same and op.experts[0] <= send.experts[0] and send.experts[1] <= op.experts[1]:
                    self.recv_of[other] = place
        self.ranks = [_Rank(hardware.num_sms, dict.fromkeys(self.streams, 0)) for _ in ranks]
        self.durations = [self._duration(op) for op in self.ops]
        self.launched: dict[int, list[tuple[float, float]]] = {}  # SEND -> (first, last byte's departure) by rank
        self.arrival: dict[int, list[float]] = {}  # RECV -> by rank
        self.waiting: dict[int, list[tuple[int, float]]] = {}  # RECV -> (rank, start)
        self.events: list[tuple[float, int, int, float]] = []  # end, rank, op, start
        self.spans: list[Span] = []

    def _duration(self, op: Op) -> list[float]:
        """By rank: all of a GEMM, the copying of a SEND or RECV."""
        if not op.is_comm:
            return gemm_us(op, self.hardware, self.traffic, op.num_sms)[self.names].tolist()
        moved = self.traffic.sent_bytes if op.kind.endswith("send") else self.traffic.received_bytes
        copied = moved(op.kind, op.experts)[self.names] / (op.num_sms * self.hardware.sm_copy_gbs * 1e3)
        return copied.tolist()

    def run(self) -> Timeline:
        now = 0.0
        for rank in range(len(self.ranks)):
            self._launch(rank, now)
        while self.events:
            now, rank, place, start = heapq.heappop(self.events)
            state, op = self.ranks[rank], self.ops[place]
            state.over.add(place)
            state.free_sms += op.num_sms
            state.running.discard(op.stream)
            state.heads[op.stream] += 1
            self.spans.append(Span(self.names[rank], place, start, now))
            self._launch(rank, now)
        assert len(self.spans) == len(self.ops) * len(self.ranks)  # a legal list always ends
        return Timeline(self.schedule, tuple(self.spans))

    def _launch(self, rank: int, now: float) -> None:
        """Start what can start, in the order of the list: that is the order in which the GPU gets the kernels."""
        state = self.ranks[rank]
        heads = [places[state.heads[s]] for s, places in self.streams.items() if state.heads[s] < len(places)]
        for place in sorted(heads):
            op = self.ops[place]
            blocked = op.stream in state.running or any(self.recorded[e] not in state.over for e in op.waits)
            if blocked or op.num_sms > state.free_sms:
                continue
            state.free_sms -= op.num_sms
            state.running.add(op.stream)
            ready = now + self.hardware.launch_us
            if op.kind.endswith("recv"):
                self.waiting.setdefault(place, []).append((rank, now))
                self._receive(place)
            elif op.kind.endswith("send"):
                heapq.heappush(self.events, (ready + self.durations[place][rank], rank, place, now))
                self._depart(rank, place, ready)
            else:
                heapq.heappush(self.events, (now + self.durations[place][rank], rank, place, now))

    def _depart(self, rank: int, place: int, ready: float) -> None:
        """Put a SEND's bytes on the link; when all ranks have, the times of arrival follow."""
        state, op = self.ranks[rank], self.ops[place]
        on_link = float(self.traffic.sent_bytes(op.kind, op.experts)[self.names[rank]]) / (1e3 * self.hardware.link_gbs)
        first = max(ready, state.out_free)
        state.out_free = max(first + on_link, ready + self.durations[place][rank])
        self.launched.setdefault(place, []).append((first, state.out_free))
        if len(self.launched[place]) < len(self.ranks):
            return
        received = self.traffic.received_bytes(op.kind, op.experts)[self.names] / (1e3 * self.hardware.link_gbs)
        first, last = min(one for one, _ in self.launched[place]), max(one for _, one in self.launched[place])
        recv = self.recv_of[place]
        arrival = self.arrival.setdefault(recv, [0.0] * len(self.ranks))
        for peer, other in enumerate(self.ranks):
            other.in_free = max(last, max(first, other.in_free) + float(received[peer]))
            arrival[peer] = max(arrival[peer], other.in_free + self.hardware.link_us)
        self._receive(recv)

    def _receive(self, place: int) -> None:
        """A RECV holds its SMs until everything that it waits for is there, then copies it out."""
        sends = [send for send, recv in self.recv_of.items() if recv == place]
        if any(len(self.launched.get(send, [])) < len(self.ranks) for send in sends):
            return
        for rank, start in self.waiting.pop(place, []):
            ready = max(start + self.hardware.launch_us, self.arrival[place][rank])
            heapq.heappush(self.events, (ready + self.durations[place][rank], rank, place, start))
