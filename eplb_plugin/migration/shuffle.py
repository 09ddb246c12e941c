"""Move expert weights in place while the model serves: stage a batch of layers, vote, then switch it on all ranks.

An engine calls `begin` with the placement that all ranks agreed on, then `step` once per forward step on every rank
(idle ranks too) until it returns False; or `finish`, which does not return before the end. docs/migration.md tells the
protocol and what happens on each failure.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from ..errors import PluginError, mismatch
from ..topology import Topology
from .budget import Budget, batches
from .layout import ExpertRows
from .schedule import Schedule, schedule
from .transfer import StagedLayer, Transfer, Wires
from .votes import Vote, Votes

logger = logging.getLogger("eplb_plugin")

EXIT_CODE = 70  # of a process that must not go on serving
Switch = Callable[[list[int], NDArray[np.int32]], None]


@dataclass
class _Migration:
    """One under way. committed: batches that are in force. staged: those that have been filled, in order."""

    new: NDArray[np.int32]
    began: float
    plan: Schedule | None = None
    transfer: Transfer | None = None
    batches: list[list[int]] = field(default_factory=list)
    digest: int = 0
    problem: str = ""
    committed: int = 0
    progress: float = 0.0  # when a batch was last given to staging
    staged: list[Future[list[StagedLayer]]] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """What went wrong on this rank."""
        return self.problem or (self.transfer.problem if self.transfer else "")

    @property
    def layers_committed(self) -> int:
        return sum(len(batch) for batch in self.batches[: self.committed])


class Shuffler:
    """Moves the experts of one model on one rank.

    layers: [L] the layer's tensors; topology: of the EP group, whose rank order `data` and `votes` have. data: the
    group that rows travel on; votes: a CPU group; nothing else may use either. switch(layers, phy2log [n, P]): puts
    the maps of these layers in force, called on the same step on every rank, after their weights are in place.

    Over gloo, rows travel in a background thread and are staged in host memory. Over another backend (NCCL) they
    travel inside `step`, on its stream: beside kernels that communicate themselves, a second stream can deadlock.

    refusal: why the last migration was refused, or empty. Raises PluginError if the tensors do not fit the topology.
    """

    def __init__(
        self,
        layers: Sequence[ExpertRows],
        topology: Topology,
        *,
        data: dist.ProcessGroup,
        votes: dist.ProcessGroup,
        switch: Switch,
        budget: Budget | None = None,
    ) -> None:
        self.layers, self.topology, self.budget, self._switch = layers, topology, budget or Budget(), switch
        for found, expected, what in (
            ({layer.num_slots for layer in layers}, {topology.slots_per_rank}, "slots of the expert tensors"),
            ({dist.get_world_size(data), dist.get_world_size(votes)}, {topology.num_ranks}, "ranks of the groups"),
        ):
            if found != expected:
                raise mismatch(what, found=found, expected=expected, fix="pass the EP group's topology")
        background = dist.get_backend(data) == "gloo"
        self._pool = ThreadPoolExecutor(1, "eplb-migration") if background else None
        self._ahead = 2 if background else 1  # batches under way at once
        self.wires = Wires(data, layers, self._ahead, self.budget.message_bytes, self.budget.transfer_seconds)
        self._votes = Votes(votes, self.budget.vote_seconds)
        self._signature = hashlib.sha256(repr([[one.signature for one in layers], self.budget]).encode()).digest()
        self._serial = 0
        self._now: _Migration | None = None
        self.refusal = ""
        logger.info(
            "migration: %.1f MiB of staging memory on %s, at most %d layers and %.1f MiB a step",
            self.wires.nbytes / 2**20, self.wires.staging.device, self.budget.layers_per_step,
            min(self.budget.bytes_per_step or self.wires.half_bytes, self.wires.half_bytes) / 2**20,
        )  # fmt: skip

    def begin(self, old: ArrayLike, new: ArrayLike) -> None:
        """old: [L, P] the placement in force; new: [L, P] the one that all ranks agreed on. Moves nothing yet.

        Returns at once if nothing differs. A failure here on one rank ends in the vote, where all ranks refuse.
        Raises PluginError if a migration is under way, or the wires broke in an earlier one.
        """
        if self._now is not None:
            raise mismatch("migration", found="one under way", expected="none", fix="step until it is over")
        if np.array_equal(old, new):
            return
        if not self.wires.intact:
            raise PluginError("migration: a rank was lost in an earlier one; fix: restart the server to migrate again")
        self._serial += 1
        self.refusal = ""
        migration = self._now = _Migration(np.array(new, np.int32), time.monotonic())
        try:
            plan = schedule(old, new, self.topology)
            sizes = [layer.row_bytes for layer in self.layers]
            if len(migration.new) != len(sizes):
                raise mismatch("phy2log", found=len(migration.new), expected=f"{len(sizes)} layers", fix="report this")
            migration.batches = batches(plan, sizes, self.budget, self.wires.half_bytes)
            migration.transfer = Transfer(plan, self.layers, self.wires, self._serial)
            migration.plan, migration.digest = plan, self._digest(plan)
        except Exception as error:
            migration.problem = " ".join(f"planning: {type(error).__name__}: {error}".split())
            return
        self._announce(plan)

    def step(self) -> bool:
        """Collective, once per forward step: commit at most one batch. Returns whether the migration goes on.

        Ends the process if the vote fails, or anything after it.
        """
        if self._now is None:
            return False
        if self._votes.cast:
            self._decide(1)
        if self._now is not None:
            self._cast(self._now)
        return self._now is not None

    def finish(self) -> None:
        """Collective: to the end, without forward steps in between, all that is staged at a time."""
        if self._now is not None and self._votes.cast:
            self._decide(1)
        while self._now is not None:
            migration = self._now
            if migration.committed < len(migration.staged):
                migration.staged[migration.committed].result()
            self._cast(migration)
            self._decide(self._ahead)

    def _cast(self, migration: _Migration) -> None:
        done = [future.done() for future in migration.staged]
        if False in done and time.monotonic() - migration.progress > self.budget.vote_seconds:
            migration.problem = migration.problem or f"staging takes longer than {self.budget.vote_seconds} s"
        try:
            self._votes.send(
                Vote(
                    staged=done.index(False) if False in done else len(done),
                    digest=migration.digest,
                    healthy=not migration.reason,
                    intact=self.wires.intact,
                    idle=all(done),
                )
            )
        except Exception as error:
            self._end("the vote failed", error)

    def _decide(self, limit: int) -> None:
        """Act on the vote that was cast: commit at most `limit` batches, and begin to stage as many."""
        migration = self._now
        assert migration is not None
        try:
            verdict = self._votes.count()
        except Exception as error:
            self._end("the vote failed, so ranks may disagree about the placement", error)
        self.wires.intact &= verdict.intact
        if verdict.refused and not self.refusal:
            self._refuse(migration, verdict.refused)
        if self.refusal:
            if verdict.idle:  # nobody touches the staging memory or the wires any more
                self._now = None
            return
        try:
            while migration.committed < min(verdict.staged, len(migration.batches)) and limit > 0:
                self._commit(migration)
                limit -= 1
        except Exception as error:
            self._end("committing failed with a layer half in place", error)
        if migration.committed == len(migration.batches):
            self._complete(migration)
        else:
            self._stage(migration)

    def _stage(self, migration: _Migration) -> None:
        """The same batches on every rank: which ones depends on the verdicts alone."""
        assert migration.transfer is not None
        ahead = migration.batches[: migration.committed + self._ahead]
        for number in range(len(migration.staged), len(ahead)):
            migration.progress = time.monotonic()
            half = number % self._ahead
            if self._pool is not None:
                migration.staged.append(self._pool.submit(migration.transfer.stage, ahead[number], half))
            else:
                future: Future[list[StagedLayer]] = Future()
                future.set_result(migration.transfer.stage(ahead[number], half))
                migration.staged.append(future)

    @torch.inference_mode()
    def _commit(self, migration: _Migration) -> None:
        batch = migration.batches[migration.committed]
        for staged in migration.staged[migration.committed].result():
            staged.write(self.layers[staged.layer])
        self._switch(batch, migration.new[batch])
        migration.committed += 1

    def _digest(self, plan: Schedule) -> int:
        digest = hashlib.sha256(self._signature + plan.digest.to_bytes(8, "big") + self._serial.to_bytes(8, "big"))
        return int.from_bytes(digest.digest()[:7], "big")

    def _announce(self, plan: Schedule) -> None:
        if self.wires.rank == 0:
            sizes = [layer.expert_bytes for layer in self.layers]
            ranks, nodes = plan.rank_traffic(sizes), plan.node_traffic(sizes)
            np.fill_diagonal(ranks, 0)
            np.fill_diagonal(nodes, 0)
            logger.info(
                "migration %d: %d of %d layers, %.1f MiB between ranks (busiest pair %.1f), %.1f MiB between nodes "
                "(busiest pair %.1f)",
                self._serial, len(plan.changed_layers), len(sizes),
                *(part / 2**20 for part in (ranks.sum(), ranks.max(), nodes.sum(), nodes.max())),
            )  # fmt: skip

    def _complete(self, migration: _Migration) -> None:
        self._now = None
        if self.wires.rank == 0:
            seconds = time.monotonic() - migration.began
            logger.info("migration %d: %d layers in %.2f s", self._serial, migration.layers_committed, seconds)

    def _refuse(self, migration: _Migration, why: str) -> None:
        self.refusal = f"{why}; here: {migration.reason}" if migration.reason else why
        logger.log(
            logging.ERROR if migration.reason or self.wires.rank == 0 else logging.DEBUG,
            "migration %d refused after %d of %d changed layers, the old placement serves on in the others: %s%s",
            self._serial, migration.layers_committed, sum(len(batch) for batch in migration.batches), self.refusal,
            "" if self.wires.intact else "; a rank was lost: no migration before the server is restarted",
        )  # fmt: skip

    def _end(self, what: str, error: Exception) -> NoReturn:
        """Weights or maps may differ between ranks: nothing may be served any more, whoever catches exceptions."""
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        logger.critical("migration %d: %s, rank %d ends: %s", self._serial, what, self.wires.rank, cause)
        logging.shutdown()
        os._exit(EXIT_CODE)
