"""A slow, obvious machine that runs an op list as DeepEP's kernels and CUDA's streams would, in any possible order.

Ranks, streams, two halves of words and rows, everything as plain values; knows no rule of the checker. Every launch has
steps (begin, end; a SEND also publishes between), so that what overlaps in time can meet. SMs are no limit here: a
list must not be right only because a device is small. `explore` tries every order, `stroll` random ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from eplb_plugin.peo.ops import Op, Schedule

RANKS = 2
State = dict[Any, Any]  # memory and progress; a key that is absent reads 0


class Broken(Exception):
    """A wrong result, a race, or ranks that wait for ever."""


class Machine:
    """Some layers with the same list. `replayed`: every layer is one replay of a graph, with the half baked in."""

    def __init__(self, schedule: Schedule, layers: int = 2, replayed: bool = False) -> None:
        self.schedule, self.local = schedule, schedule.num_local_experts
        self.launches: list[tuple[int, Op, int]] = []  # layer, op, half
        self.waits: list[list[int]] = []  # launches that the stream has to see over
        self.streams: dict[str, list[int]] = {}
        self.host(layers, replayed)

    def host(self, layers: int, replayed: bool) -> None:
        """What the CPU decides at launch: the half, and which recording of an event a wait means (maybe none)."""
        half = 0
        for layer in range(layers):
            half = 0 if replayed else half
            recorded: dict[str, int] = {}
            halves: dict[tuple[str, int], int] = {}
            allocated = False
            for op in self.schedule:
                place, own = len(self.launches), half
                phase, step = op.kind.split()
                patched = self.schedule.api == "patched"
                if op.kind == "dispatch send":
                    allocated = allocated or op.round == 0 or not patched
                    if not allocated:
                        raise Broken("a round before the one that allocates")
                if step == "send":
                    halves[phase, op.round if phase == "dispatch" else 0] = half
                    half ^= not patched or op.round == op.num_rounds - 1
                if step == "recv":
                    if (phase, op.round) not in halves:
                        raise Broken("a hook that no call has returned")
                    own = halves[phase, op.round]
                self.launches.append((layer, op, own))
                self.waits.append([recorded[event] for event in op.waits if event in recorded])
                self.streams.setdefault(op.stream, []).append(place)
                if op.records:
                    recorded[op.records] = place

    def moves(self, state: State) -> Iterator[tuple[int, int, str]]:
        """(rank, launch, step) that may come next."""
        for rank in range(RANKS):
            for places in self.streams.values():
                place = next((p for p in places if state.get((rank, p)) != "end"), None)
                if place is None:
                    continue
                steps = self.steps(place)
                if (rank, place) in state:
                    yield rank, place, steps[steps.index(state[rank, place]) + 1]
                elif all(state.get((rank, p)) == "end" for p in self.waits[place]) and self.ready(state, rank, place):
                    yield rank, place, "begin"

    def steps(self, place: int) -> list[str]:
        return ["begin", "publish", "end"] if self.launches[place][1].kind.endswith("send") else ["begin", "end"]

    def words(self, rank: int, place: int) -> list[tuple[Any, ...]]:
        """What a RECV spins on: word `local expert * RANKS + peer` of a dispatch, `global expert` of a combine."""
        _, op, half = self.launches[place]
        if op.kind == "combine recv" or self.schedule.api == "stock":  # a stock RECV waits for masked experts too
            return [("word", rank, half, expert) for expert in range(RANKS * self.local)]
        return [("word", rank, half, e * RANKS + peer) for e in range(*op.experts) for peer in range(RANKS)]

    def ready(self, state: State, rank: int, place: int) -> bool:
        recv = self.launches[place][1].kind.endswith("recv")
        return not recv or all(state.get(word) for word in self.words(rank, place))

    def step(self, before: State, rank: int, place: int, step: str) -> State:
        state = dict(before)
        layer, op, half = self.launches[place]
        state[rank, place] = step
        getattr(self, op.kind.replace(" ", "_"))(state, rank, layer, op, half, step)
        return state

    def occupy(self, state: State, rank: int, step: str) -> None:
        if step == "begin" and state.get(("workspace", rank)):
            raise Broken("two SENDs in one workspace")
        state["workspace", rank] = int(step != "end")

    def clear(self, state: State, rank: int, half: int) -> None:
        for word in range(RANKS * self.local):
            state.pop(("word", rank, half ^ 1, word), None)

    def dispatch_send(self, state: State, rank: int, layer: int, op: Op, half: int, step: str) -> None:
        self.occupy(state, rank, step)
        stock = self.schedule.api == "stock"
        if step == "begin":
            if stock or op.round == 0:
                state["cast", rank, half] = layer + 1
            if stock or op.round == op.num_rounds - 1:
                self.clear(state, rank, half)
            return
        if step == "end":
            for expert in range(*op.experts):
                state.pop(("count", rank, layer, expert), None)
            return
        for expert in range(*op.experts):
            for peer in range(RANKS):
                state["row", peer, half, expert, rank] = ("x", state.get(("cast", rank, half)), expert)
        rest = [] if not stock else [e for e in range(self.local) if not op.experts[0] <= e < op.experts[1]]
        for expert in [*range(*op.experts), *rest]:  # a stock call sets every word: no tokens for masked experts
            for peer in range(RANKS):
                word = ("word", peer, half, expert * RANKS + rank)
                state[word] = state.get(word, 0) + 1  # over the network a word is added to, not set

    def dispatch_recv(self, state: State, rank: int, layer: int, op: Op, half: int, step: str) -> None:
        for word in self.words(rank, self.launches.index((layer, op, half))):
            if step == "begin" and state.get(word) != 1:
                raise Broken("a stale count")
        for expert in range(*op.experts):
            for peer in range(RANKS):
                if state.get(("row", rank, half, expert, peer)) != ("x", layer + 1, expert):
                    raise Broken("received other rows than were sent")
            if step == "end":
                count = ("count", rank, layer, expert)
                state[count] = state.get(count, 0) + RANKS

    def gemm_up(self, state: State, rank: int, layer: int, op: Op, half: int, step: str) -> None:
        for expert in range(*op.experts):
            if state.get(("count", rank, layer, expert)) != RANKS:
                raise Broken("computed before it was received")
        state["middle", rank] = (layer, op.experts, step)

    def gemm_down(self, state: State, rank: int, layer: int, op: Op, half: int, step: str) -> None:
        if state.get(("middle", rank)) != (layer, op.experts, "end"):
            raise Broken("the GEMM workspace belongs to another round")
        if step == "end":
            for expert in range(*op.experts):
                state["y", rank, layer, expert] = 1

    def combine_send(self, state: State, rank: int, layer: int, op: Op, half: int, step: str) -> None:
        self.occupy(state, rank, step)
        for expert in range(*op.experts):
            if not state.get(("y", rank, layer, expert)):
                raise Broken("combined before it was computed")
        if step == "begin" and (op.round == 0 or self.schedule.api == "stock"):
            self.clear(state, rank, half)
        if step != "publish":
            return
        for expert in range(*op.experts):
            for peer in range(RANKS):
                word = ("word", peer, half, rank * self.local + expert)
                state["back", peer, half, rank, expert] = layer + 1
                state[word] = state.get(word, 0) + 1

    def combine_recv(self, state: State, rank: int, layer: int, op: Op, half: int, step: str) -> None:
        for owner in range(RANKS):
            for expert in range(self.local):
                if state.get(("word", rank, half, owner * self.local + expert)) != 1:
                    raise Broken("a stale flag")
                if state.get(("back", rank, half, owner, expert)) != layer + 1:
                    raise Broken("combined other rows than were sent")
        if step == "end":
            state["out", rank] = state.get(("out", rank), 0) + 1
            if state["out", rank] != layer + 1:
                raise Broken("not one result for each layer")

    def finish(self, state: State) -> None:
        over = all(state.get((rank, place)) == "end" for rank in range(RANKS) for place in range(len(self.launches)))
        if not over:
            raise Broken("all ranks wait")
        layers = self.launches[-1][0] + 1
        if any(state.get(("out", rank)) != layers for rank in range(RANKS)):
            raise Broken("a layer without a result")


def explore(machine: Machine) -> int:
    """Every order; the number of states. Raises Broken."""
    seen, stack = set(), [State()]
    while stack:
        state = stack.pop()
        moves = list(machine.moves(state))
        if not moves:
            machine.finish(state)
        for move in moves:
            after = machine.step(state, *move)
            key = frozenset(after.items())
            if key not in seen:
                seen.add(key)
                stack.append(after)
    return len(seen)


def stroll(machine: Machine, seed: int) -> None:
    """One order: random priorities of the ranks' streams, which now and then change. Raises Broken."""
    rng = random.Random(seed)
    state, weight = State(), dict[Any, float]()
    while moves := list(machine.moves(state)):
        if rng.random() < 0.1:
            weight.clear()
        key = {move: (move[0], machine.launches[move[1]][1].stream) for move in moves}
        state = machine.step(state, *max(moves, key=lambda move: weight.setdefault(key[move], rng.random())))
    machine.finish(state)
