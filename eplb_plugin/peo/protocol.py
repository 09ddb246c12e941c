"""Prove that an op list is legal for DeepEP's double buffer before any of it runs.

A `deep_ep.Buffer` for low latency is two halves used in turn. Each half has one word per (expert, rank): a SEND writes
the peers' words, a RECV spins until its own are set. One SEND of every call zeroes the words of the *other* half.
Get the order wrong and a word is lost (all ranks spin until they trap) or stale (wrong tokens, silently).

Two facts carry the proof. All ranks run the same list; and a RECV is over only if every peer has finished the SEND of
that round. So what is ordered against a RECV on one rank is ordered against the peers' SENDs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import NoReturn, get_args

from ..errors import mismatch
from .ops import Kind, Op, Schedule, Stream

MAX_WARP_GROUPS = 14  # experts that one SM of a DeepEP kernel can serve: it asserts fewer than 15 warp groups
MIN_COMM_SMS = 2  # DeepEP asserts more than one: the first SM also clears the other half


def check(schedule: Schedule, *, num_ranks: int | None = None, graph_layers: int | None = None) -> None:
    """Raises PluginError naming the op that breaks a rule; silent for a legal list.

    num_ranks: EP size, to check that the SM shares are enough for DeepEP's kernels; None: not checked.
    graph_layers: MoE layers in one captured CUDA graph, whose replays begin with the half that the capture began with;
        None: no graph.
    """
    _Check(schedule).all_rules()
    if num_ranks is not None:
        _check_shares(schedule, num_ranks)
    if graph_layers is not None and schedule.num_calls * graph_layers % 2:
        found = f"{schedule.num_calls} calls × {graph_layers} MoE layers in a CUDA graph"
        expected = "an even number: every replay begins with the same half of the buffer"
        fix = "change peo.num_rounds by one, or serve without CUDA graphs"
        raise mismatch(_name(schedule), found=found, expected=expected, fix=fix)


def check_agreement(schedules: Sequence[Schedule]) -> None:
    """Every rank must run the same list. Raises PluginError naming the first op that differs. schedules: by rank."""
    for rank, other in enumerate(schedules):
        ours, theirs = schedules[0], other
        for place in range(max(len(ours), len(theirs))):
            pair = [str(s.ops[place]) if place < len(s) else "nothing" for s in (ours, theirs)]
            if ours.ops[place : place + 1] != theirs.ops[place : place + 1]:
                found = f"{pair[1]} on rank {rank}" + (", with other SMs or events" if pair[0] == pair[1] else "")
                expected = f"{pair[0]}, as on rank 0"
                raise mismatch(f"PEO op {place}", found=found, expected=expected, fix="configure all ranks alike")


def least_comm_sms(num_experts: int) -> int:
    """SMs without which a kernel of DeepEP for that many experts, of all ranks, stops at an assertion."""
    return max(MIN_COMM_SMS, -(-num_experts // MAX_WARP_GROUPS))


def _name(schedule: Schedule) -> str:
    return f"PEO schedule {schedule.method} ({schedule.api} API, {schedule.num_rounds} rounds)"


def _check_shares(schedule: Schedule, num_ranks: int) -> None:
    for op in schedule:
        experts = (op.experts[1] - op.experts[0]) * num_ranks
        least = least_comm_sms(experts)
        if op.is_comm and op.num_sms < least:
            expected = f">= {least}, for {experts} experts over {num_ranks} ranks"
            raise mismatch(
                f"{_name(schedule)}: {op}", found=f"{op.num_sms} SMs", expected=expected, fix="raise the SMs of this op"
            )


class _Check:
    """before[i]: bit j is set if op j is over before op i starts, whatever the speed of either."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.ops = schedule, schedule.ops
        self.before: list[int] = []
        self.at: dict[Kind, list[int]] = {kind: [] for kind in get_args(Kind)}  # by kind, places in order of launch
        for place, op in enumerate(self.ops):
            self.at.setdefault(op.kind, []).append(place)

    def all_rules(self) -> None:
        self.ops_are_well_formed()
        self.order_the_ops()
        for kind in get_args(Kind):
            self.every_slice_once(kind)
        self.phases_fit()
        self.recv_follows_its_send()
        self.sends_in_turn()
        self.one_call_in_flight()
        self.data_is_there()
        self.layer_is_closed()

    def refuse(self, place: int, found: str, expected: str) -> NoReturn:
        where = f"{_name(self.schedule)}: op {place} ({self.ops[place]})" if self.ops else _name(self.schedule)
        raise mismatch(where, found=found, expected=expected, fix="build it with make_schedule")

    def is_before(self, first: int, second: int) -> bool:
        return bool(self.before[second] >> first & 1)

    def need(self, first: int, second: int, why: str) -> None:
        if not self.is_before(first, second):
            self.refuse(second, f"may start before {self.ops[first]} is over", why)

    def ops_are_well_formed(self) -> None:
        device, experts = self.schedule.num_device_sms, self.schedule.num_local_experts
        for place, op in enumerate(self.ops):
            if op.kind not in get_args(Kind) or op.stream not in get_args(Stream):
                self.refuse(place, f"{op.kind} on {op.stream}", "a known kind and stream")
            if not 1 <= op.num_sms <= device:
                self.refuse(place, f"{op.num_sms} SMs", f"1..{device}")
            if self.schedule.api == "stock" and op.is_comm and op.num_sms != device:
                self.refuse(place, f"{op.num_sms} SMs", f"{device}: a stock buffer cannot be told")
            size, odd = divmod(experts, max(op.num_rounds, 1))
            fits = 0 <= op.round < op.num_rounds and not odd
            if not fits or op.experts != (op.round * size, (op.round + 1) * size):
                self.refuse(place, f"experts {op.experts}", f"slice {op.round} of {op.num_rounds} of {experts} experts")

    def order_the_ops(self) -> None:
        last_on: dict[Stream, int] = {}
        recorder: dict[str, int] = {}
        for place, op in enumerate(self.ops):
            earlier = [last_on[op.stream]] if op.stream in last_on else []
            for event in op.waits:
                if event not in recorder:  # CUDA would not wait at all
                    self.refuse(place, f"waits for {event!r}", "an event that an earlier op records")
                earlier.append(recorder[event])
            mask = 0
            for other in earlier:
                mask |= self.before[other] | 1 << other
            self.before.append(mask)
            last_on[op.stream] = place
            if op.records in recorder:
                self.refuse(place, f"records {op.records!r} again", "one op for each event")
            if op.records is not None:
                recorder[op.records] = place

    def every_slice_once(self, kind: Kind) -> None:
        places = self.at[kind]
        if not places:
            self.refuse(len(self.ops) - 1, f"a list without {kind}", "dispatch, GEMM and combine")
        rounds = self.ops[places[0]].num_rounds
        seen: set[int] = set()
        for place in places:
            op = self.ops[place]
            if op.num_rounds != rounds or op.round in seen:
                self.refuse(place, f"{kind} of experts {op.experts} besides others", "every expert once")
            seen.add(op.round)
        if len(seen) != rounds:
            missing = min(set(range(rounds)) - seen)
            self.refuse(places[-1], f"no {kind} {missing}", f"{kind} of all {rounds} rounds")

    def phases_fit(self) -> None:
        """A hook receives what its call sent; one RECV takes the whole combine, so that it adds up in one order."""
        pairs: tuple[tuple[Kind, Kind], ...] = (("dispatch send", "dispatch recv"), ("gemm up", "gemm down"))
        for kind, follower in pairs:
            rounds, place = self.ops[self.at[kind][0]].num_rounds, self.at[follower][0]
            if self.ops[place].num_rounds != rounds:
                self.refuse(place, f"{self.ops[place].num_rounds} rounds", f"{rounds}, as of {kind}")
        whole: list[Kind] = ["combine recv", "combine send"] if self.schedule.api == "stock" else ["combine recv"]
        for kind in whole:
            place = self.at[kind][0]
            if self.ops[place].num_rounds != 1:
                self.refuse(place, f"{self.ops[place].num_rounds} rounds", "one, of all experts")

    def sends_of(self, recv: int) -> list[int]:
        """Places of the SENDs whose words a RECV waits for."""
        if self.ops[recv].kind == "combine recv":
            return self.at["combine send"]
        return [place for place in self.at["dispatch send"] if self.ops[place].round == self.ops[recv].round]

    def recv_follows_its_send(self) -> None:
        """Else it could take the SMs that its own SEND needs; and a dispatch SEND zeroes the counts of its experts.

        The hook launches on the stream of its call; the patched one can use DeepEP's own stream instead.
        """
        for place in self.at["dispatch recv"] + self.at["combine recv"]:
            sends = self.sends_of(place)
            for send in sends:
                self.need(send, place, "a RECV after its own SEND")
            allowed = {self.ops[sends[-1]].stream} | ({"comm"} if self.schedule.api == "patched" else set())
            if self.ops[place].stream not in allowed:
                self.refuse(place, self.ops[place].stream, f"{' or '.join(sorted(allowed))}, where its hook can run")

    def sends_in_turn(self) -> None:
        """They share one workspace. Round 0 casts the tokens and allocates; the last round turns to the other half."""
        sends = sorted(self.at["dispatch send"] + self.at["combine send"])
        for first, second in pairwise(sends):
            self.need(first, second, "one SEND at a time: they share a workspace")
        for places in (self.at["dispatch send"], self.at["combine send"]):
            if self.schedule.api == "stock":
                break  # every round is a whole call
            for place, round_id in ((places[0], 0), (places[-1], len(places) - 1)):
                if self.ops[place].round != round_id:
                    expected = "round 0 first (it casts and allocates), the last round last (it turns the buffer)"
                    self.refuse(place, f"launched {'first' if place == places[0] else 'last'}", expected)

    def one_call_in_flight(self) -> None:
        """A SEND of call k + 1 clears, or lets peers write, words that RECVs of call k and call k - 1 still read."""
        calls = [(self.at["dispatch send"], self.at["dispatch recv"])]
        if self.schedule.api == "stock":  # every launch is a call
            recv_of = {self.ops[place].round: place for place in self.at["dispatch recv"]}
            calls = [([place], [recv_of[self.ops[place].round]]) for place in self.at["dispatch send"]]
        calls.append((self.at["combine send"], self.at["combine recv"]))
        for (_, recvs), (sends, _) in pairwise(calls):
            for recv in recvs:
                for send in sends:
                    self.need(recv, send, "one call in flight: all that it sent received before the next SEND")

    def data_is_there(self) -> None:
        """GEMM after the RECVs of its experts, combine after the GEMMs; the GEMMs of rounds share one workspace."""
        after: dict[Kind, Kind] = {"gemm up": "dispatch recv", "gemm down": "gemm up", "combine send": "gemm down"}
        for kind, source in after.items():
            for place in self.at[kind]:
                for other in self.at[source]:
                    if _overlap(self.ops[place], self.ops[other]):
                        self.need(other, place, f"its input, {source} of the same experts")
        up, down = ({self.ops[place].round: place for place in self.at[kind]} for kind in ("gemm up", "gemm down"))
        for one, other in combinations(up, 2):
            if not self.is_before(down[one], up[other]) and not self.is_before(down[other], up[one]):
                self.refuse(up[other], f"not ordered against round {one}", "one round at a time in the GEMM workspace")

    def layer_is_closed(self) -> None:
        """What runs beside `main` is forked from it and joined to it: the next layer, and a graph, rely on both."""
        main = [place for place, op in enumerate(self.ops) if op.stream == "main"]
        if not main:
            self.refuse(0, "no op on main", "the layer to begin and end on main")
        for place in range(len(self.ops)):
            if place not in main and not any(self.is_before(other, place) for other in main):
                self.refuse(place, "waits for nothing on main", "a stream that is forked from main")
            if place != main[-1] and not self.is_before(place, main[-1]):
                self.refuse(place, f"may end after {self.ops[main[-1]]}", "the last op on main to end the layer")


def _overlap(one: Op, other: Op) -> bool:
    return one.experts[0] < other.experts[1] and other.experts[0] < one.experts[1]
