"""Whatever fails, wherever, on real processes: old weights with old maps, new with new, or no process at all."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

import nccl_rules
import simulated_device as sim
from eplb_plugin import PluginError, Topology
from eplb_plugin.migration import shuffle, transfer, ways
from eplb_plugin.migration.layout import ExpertRows
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.votes import Votes
from eplb_plugin.migration.wires.base import Wires
from eplb_plugin.migration.wires.group import GroupWires
from eplb_plugin.migration.wires.nixl import NixlWires
from expert_models import NO_NIXL, WIRES, Model, device_of, groups
from processes import Ranks

TOPOLOGY = Topology(2, 2, 4)
LAYERS = 6
# where a fault strikes: what is called there, in the process that fails
EVERYWHERE: dict[str, tuple[Any, str]] = {
    "planning": (ways, "schedule"),
    "reading": (ExpertRows, "read"),
    "sealing": (transfer, "seal"),
    "checking": (transfer, "broken"),
    "voting": (Votes, "send"),
    "committing": (transfer.StagedLayer, "write"),
    "switching": (Model, "switch"),
}
OVER_A_GROUP = EVERYWHERE | {"sending": (GroupWires, "start"), "receiving": (GroupWires, "wait")}
POINTS = {
    "gloo": OVER_A_GROUP,
    "sim over nccl": OVER_A_GROUP,
    # between what it told its peer and what the peer tells: on the way
    "nixl": EVERYWHERE
    | {"sending": (NixlWires, "start"), "receiving": (Wires, "wait"), "fetching": (NixlWires, "_read")},
}
BEFORE_THE_VOTE = ("planning", "reading", "sealing", "checking")
FATAL = ("voting", "committing", "switching")


@dataclass(frozen=True)
class Fault:
    """What one rank does at its `call`-th pass of a point. resume: seconds until a stopped or slow rank goes on."""

    kind: str  # raise | corrupt | slow | stop | kill
    point: str
    rank: int
    call: int
    resume: float | None = None


class Strike:
    """Installs a fault in this process for as long as it is entered."""

    def __init__(self, fault: Fault, wires: str) -> None:
        self.fault, self.calls = fault, 0
        self.owner, self.name = POINTS[wires][fault.point]
        self.original = getattr(self.owner, self.name)

    def __enter__(self) -> Strike:
        if dist.get_rank() == self.fault.rank:
            setattr(self.owner, self.name, lambda *args: self._call(*args))
        return self

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.original)

    def _call(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls != self.fault.call:
            return self.original(*args)
        kind = self.fault.kind
        if kind == "raise":
            raise ValueError("struck")
        if kind == "slow":
            time.sleep(self.fault.resume or 0.3)
        elif kind in ("stop", "kill"):
            os.kill(os.getpid(), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
        result = self.original(*args)
        if kind == "corrupt":  # after the seal
            rows = args[0]
            rows[len(rows) // 2, rows.shape[1] // 3] ^= 4
        return result


def live_through(fault: Fault, wires: str, seed: int, deadlines: tuple[float, float], folder: str) -> tuple[str, Any]:
    """-> ("done", "refused", or "refused for good", and placements); weights and maps are compared after every step."""
    handler = logging.FileHandler(f"{folder}/{dist.get_rank()}.log")
    logging.getLogger("eplb_plugin").addHandler(handler)
    rng = np.random.default_rng(seed)
    old, new, third = (rng.permuted(np.tile(np.arange(16) % 11, (LAYERS, 1)), axis=1) for _ in range(3))
    device = device_of(wires)
    model = Model(old, TOPOLOGY.slots_per_rank, device=device)
    budget = Budget(layers_per_step=2, transfer_seconds=deadlines[0], vote_seconds=deadlines[1])
    shuffler = model.shuffler(TOPOLOGY, *groups(wires, fresh=True), budget)
    nccl_rules.patience(deadlines[0])  # ranks have met, in time of their own as in an engine
    try:
        with Strike(fault, wires):
            shuffler.begin(old, new)
            while shuffler.step():
                model.check()
            model.check()
        refused = bool(shuffler.refusal)
        found = model.phy2log.copy()
        assert refused or np.array_equal(found, new)
        if shuffler.wires.intact:  # nothing is left of it
            shuffler.begin(found, third)
            shuffler.finish()
            model.check()
            assert np.array_equal(model.phy2log, third), shuffler.refusal
        else:
            with pytest.raises(PluginError, match="a rank was lost"):
                shuffler.begin(found, third)
        assert not sim.has_stopped()  # whatever did not arrive: the engine's stream goes on
        verdict = "done" if not refused else "refused" if shuffler.wires.intact else "refused for good"
        return verdict, (old, found, new)
    finally:
        logging.getLogger("eplb_plugin").removeHandler(handler)
        handler.close()


class Arena:
    """Processes that are struck again and again, and started anew when some of them died."""

    def __init__(self, wires: str, folder: Path) -> None:
        self.wires, self.folder = wires, folder
        self.ranks: Ranks | None = None

    def strike(self, fault: Fault, seed: int = 0, deadlines: tuple[float, float] = (2.0, 6.0)) -> list[Any]:
        """What became of every rank: the verdict of `live_through` or its exit code; the rest is asserted here."""
        if self.ranks is None:
            self.ranks = Ranks(TOPOLOGY.num_ranks)
        size = TOPOLOGY.num_ranks
        for rank in range(size):
            (self.folder / f"{rank}.log").write_text("")
        self.ranks.start(live_through, fault, self.wires, seed, deadlines, str(self.folder))
        stays_stopped = fault.kind == "stop" and self._stopped(fault) and not self._resumed(fault)
        answers = self.ranks.answers(set(range(size)) - ({fault.rank} if stays_stopped else set()))
        if stays_stopped:
            answers.insert(fault.rank, (None, -signal.SIGKILL))  # as the operator would
        if any(ok is None for ok, _ in answers):
            self.close()
        return self._judge(answers)

    def _stopped(self, fault: Fault) -> bool:
        assert self.ranks is not None
        stat = Path(f"/proc/{self.ranks.processes[fault.rank].pid}/stat")
        while not self.ranks.answered(fault.rank):  # or else the point was not passed so often
            if stat.read_text().rpartition(")")[2].split()[0] == "T":
                return True
            time.sleep(0.02)
        return False

    def _resumed(self, fault: Fault) -> bool:
        if fault.resume is None:
            return False
        assert self.ranks is not None
        time.sleep(fault.resume)
        os.kill(self.ranks.processes[fault.rank].pid, signal.SIGCONT)
        return True

    def _judge(self, answers: list[tuple[bool | None, Any]]) -> list[Any]:
        """Whoever lives agrees with all who live; whoever ended said why, in one line."""
        for rank, (ok, value) in enumerate(answers):
            assert ok is not False, f"rank {rank}:\n{value}"
            if ok is None and value != -signal.SIGKILL:
                assert value == shuffle.EXIT_CODE
                last = [line for line in (self.folder / f"{rank}.log").read_text().splitlines() if " ends: " in line]
                assert len(last) == 1, last
        alive = [value for ok, value in answers if ok]
        for verdict, (old, found, new) in alive:
            assert verdict == alive[0][0]
            assert np.array_equal(found, alive[0][1][1])
            assert all(np.array_equal(row, old[i]) or np.array_equal(row, new[i]) for i, row in enumerate(found))
        return [value[0] if ok else value for ok, value in answers]

    def close(self) -> None:
        if self.ranks is not None:
            for process in self.ranks.processes:
                if process.is_alive():
                    process.kill()
            self.ranks.close()
            self.ranks = None


@pytest.fixture(scope="module", params=[*WIRES, "sim over nccl"])
def arena(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    made = Arena(request.param, tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


ALL_REFUSE = ["refused"] * TOPOLOGY.num_ranks
ALL_REFUSE_FOR_GOOD = ["refused for good"] * TOPOLOGY.num_ranks
ALL_DONE = ["done"] * TOPOLOGY.num_ranks


@pytest.mark.parametrize("point", BEFORE_THE_VOTE)
def test_an_exception_before_the_vote_is_refused_by_all(arena: Arena, point: str) -> None:
    """The old placement serves on everywhere; nobody had to wait for the rank that failed; the next migration works."""
    assert arena.strike(Fault("raise", point, 2, 1), deadlines=(20.0, 30.0)) == ALL_REFUSE


@pytest.mark.parametrize("point", ["sending", "receiving"])
def test_broken_wires_are_refused_by_all(arena: Arena, point: str) -> None:
    """The old placement serves on everywhere, and no other migration is begun."""
    assert arena.strike(Fault("raise", point, 2, 1), deadlines=(1.0, 20.0)) == ALL_REFUSE_FOR_GOOD


def test_a_corrupted_message_is_refused_by_all(arena: Arena) -> None:
    """A flipped bit in a row that was sealed: the receiver's check, before anything is written."""
    assert arena.strike(Fault("corrupt", "sealing", 1, 1), deadlines=(20.0, 30.0)) == ALL_REFUSE


def test_a_refusal_keeps_what_was_committed(arena: Arena) -> None:
    """Layers that were switched before stay switched, on all ranks alike (the arena compares)."""
    assert arena.strike(Fault("corrupt", "sealing", 1, 6), deadlines=(20.0, 30.0)) == ALL_REFUSE


def test_a_slow_rank_is_waited_for(arena: Arena) -> None:
    """Within the deadlines nothing is refused."""
    assert arena.strike(Fault("slow", "sending", 3, 2), deadlines=(20.0, 20.0)) == ALL_DONE


@pytest.mark.parametrize("arena", WIRES, indirect=True)
def test_staging_that_never_ends_is_refused(arena: Arena) -> None:
    """A thread that hangs without a message to wait for: said after `vote_seconds`, while the old placement serves."""
    assert arena.strike(Fault("slow", "reading", 2, 3, resume=4.0), deadlines=(30.0, 1.5)) == ALL_REFUSE


@pytest.mark.parametrize("point", FATAL)
def test_an_exception_after_the_vote_ends_the_process(arena: Arena, point: str) -> None:
    """The rank that failed ends with one line; the others end too, or had finished."""
    ended = arena.strike(Fault("raise", point, 0, 2), deadlines=(5.0, 5.0))
    assert ended[0] == shuffle.EXIT_CODE
    assert set(ended[1:]) <= {shuffle.EXIT_CODE, "done"}


def test_a_killed_rank_ends_the_others(arena: Arena) -> None:
    """kill -9 while rows are on their way: nobody waits for ever, nobody serves."""
    ended = arena.strike(Fault("kill", "sending", 1, 2))
    assert ended == [shuffle.EXIT_CODE, -signal.SIGKILL, shuffle.EXIT_CODE, shuffle.EXIT_CODE]


def test_a_stopped_rank_ends_the_others(arena: Arena) -> None:
    """kill -STOP, for good: the others' vote passes its deadline."""
    ended = arena.strike(Fault("stop", "receiving", 3, 2), deadlines=(1.0, 3.0))
    assert ended == [shuffle.EXIT_CODE] * 3 + [-signal.SIGKILL]


def test_a_rank_stopped_for_a_while(arena: Arena) -> None:
    """kill -STOP for longer than a transfer may take, then -CONT: refused, but nobody ends."""
    assert arena.strike(Fault("stop", "sending", 0, 1, resume=2.0), deadlines=(0.5, 30.0)) == ALL_REFUSE_FOR_GOOD


@pytest.mark.parametrize("arena", [pytest.param("nixl", marks=NO_NIXL)], indirect=True)
@pytest.mark.parametrize(("kind", "resume"), [("raise", None), ("stop", 2.0), ("kill", None)])
def test_a_rank_struck_before_it_fetches(arena: Arena, kind: str, resume: float | None) -> None:
    """It has told its peer where a message lies, so its memory is being read, but does not read itself (in time)."""
    ended = [shuffle.EXIT_CODE, -signal.SIGKILL, shuffle.EXIT_CODE, shuffle.EXIT_CODE]
    found = arena.strike(Fault(kind, "fetching", 1, 2, resume), deadlines=(0.7, 8.0))
    assert found == (ended if kind == "kill" else ALL_REFUSE_FOR_GOOD)


def random_fault(source: random.Random, points: list[str]) -> Fault:
    kind = source.choice(["raise", "corrupt", "slow", "stop", "stop for a while", "kill"])
    point = "sealing" if kind == "corrupt" else source.choice(points)
    call = 1 if point == "planning" else source.randint(1, 8)
    resume = source.choice([0.1, 1.0]) if kind == "stop for a while" else None
    return Fault(kind.split()[0], point, source.randrange(TOPOLOGY.num_ranks), call, resume)


def expected(fault: Fault) -> set[Any]:
    """What may become of a rank that is not the struck one. Any fault may come too late to matter: "done"."""
    if fault.kind == "corrupt" or (fault.kind == "raise" and fault.point not in FATAL):
        return {"refused", "refused for good", "done"}
    if fault.kind == "slow":
        return {"done"}
    if fault.resume is not None:
        return {"refused", "refused for good", "done"}
    return {shuffle.EXIT_CODE, "done"}


@pytest.mark.full
@pytest.mark.parametrize("seed", range(240))
def test_random_faults(arena: Arena, seed: int) -> None:
    """Any fault at any point, on any rank: nothing but what the table of docs/migration.md says."""
    fault = random_fault(random.Random(seed), list(POINTS[arena.wires]))
    ended = arena.strike(fault, seed, deadlines=(3.0 if fault.kind == "slow" else 0.7, 10.0))
    assert set(ended[: fault.rank] + ended[fault.rank + 1 :]) <= expected(fault), (fault, ended)
