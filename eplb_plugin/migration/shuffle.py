"""Move expert weights in place while the model serves: stage a batch of layers, vote, then switch it on all ranks.

An engine calls `begin` with the placement that all ranks agreed on, or with what will return it, then `step` once per
forward step on every rank (idle ranks too) until it returns False; or `finish`, which does not return before the end.
docs/migration.md tells the protocol and what happens on each failure.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from ..errors import PluginError, mismatch
from ..topology import Topology
from .background import Background
from .layout import ExpertRows
from .limits import Budget
from .migration import Migration
from .votes import PLANNING, Votes
from .ways import Ways
from .wires.group import GroupWires
from .wires.nixl import Nixl, NixlWires

logger = logging.getLogger("eplb_plugin")

EXIT_CODE = 70  # of a process that must not go on serving
SwitchMaps = Callable[[list[int], NDArray[np.int32]], None]
Planned = ArrayLike | Callable[[], ArrayLike]


class Shuffler:
    """Moves the experts of one model on one rank.

    layers: [L] the layer's tensors; topology: of the EP group, whose rank order `data` and `votes` have. data: what
    rows travel on, a group (GroupWires) or NIXL (NixlWires); votes: a CPU group. During a migration nothing else may
    use the group of `data`, nor `votes` from another thread. switch(layers, phy2log [n, P]): puts the maps of these
    layers in force, called on the same step on every rank, after their weights are in place; once for every hop of a
    layer, for those without a change last.

    Over gloo and NIXL, rows travel in a background thread, otherwise on the engine's stream. The engine's thread waits
    for neither: a batch counts as staged when the background thread has seen that it is.

    refusal: why the last migration was refused, or empty. Raises PluginError if the tensors do not fit the topology.
    """

    def __init__(
        self,
        layers: Sequence[ExpertRows],
        topology: Topology,
        *,
        data: dist.ProcessGroup | Nixl,
        votes: dist.ProcessGroup,
        switch: SwitchMaps,
        budget: Budget | None = None,
    ) -> None:
        self.layers, self.topology, self.budget, self._switch = layers, topology, budget or Budget(), switch
        group = data.group if isinstance(data, Nixl) else data
        for found, expected, what in (
            ({layer.num_slots for layer in layers}, {topology.slots_per_rank}, "slots of the expert tensors"),
            ({dist.get_world_size(group), dist.get_world_size(votes)}, {topology.num_ranks}, "ranks of the groups"),
        ):
            if found != expected:
                raise mismatch(what, found=found, expected=expected, fix="pass the EP group's topology")
        self._thread = Background(layers[0].device)
        self.wires = (
            NixlWires(data, layers, self.budget) if isinstance(data, Nixl) else GroupWires(data, layers, self.budget)
        )
        self._ahead = self.wires.halves  # batches under way at once
        self._votes = Votes(votes, self.budget.vote_seconds)
        self._ways = Ways(layers, topology, self.wires, self.budget)
        self._serial = 0
        self._now: Migration | None = None
        self.refusal = ""
        if self.wires.rank == 0:
            logger.info(
                "migration over %s: %.1f MiB of staging memory on %s, at most %d layers and %.1f MiB a step",
                self.wires.name, self.wires.nbytes / 2**20, self.wires.staging.device, self.budget.layers_per_step,
                min(self.budget.bytes_per_step or self.wires.half_bytes, self.wires.half_bytes) / 2**20,
            )  # fmt: skip
        self.wires.meet()  # last: ranks leave together

    def rebind(self, layers: Sequence[ExpertRows]) -> None:
        """The engine has made its tensors anew, laid out as before. Raises PluginError if they are not, or in use."""
        if self._now is not None:
            raise mismatch(
                "migration", found="one under way", expected="none", fix="call finish() before tensors are made anew"
            )
        if [one.signature for one in layers] != [one.signature for one in self.layers]:
            fix = "restart the server: experts cannot move in tensors of another layout"
            raise mismatch("expert tensors", found="others than at the start", expected="the same", fix=fix)
        self.layers = layers

    def begin(self, old: ArrayLike, new: Planned) -> None:
        """old: [L, P] the placement in force; new: [L, P] the one that all ranks agreed on. Moves nothing yet.

        new may also be a function that returns it, which runs in a background thread: serving goes on, and nothing is
        staged before every rank has its plan. If it raises, ranks may be out of step, and none ever migrates again.
        If `new` is given and nothing differs, there is nothing to vote on: all layers are switched at once.
        A failure here on one rank ends in the vote, where all ranks refuse.
        Raises PluginError if a migration is under way, or the wires broke in an earlier one.
        """
        if self._now is not None:
            raise mismatch("migration", found="one under way", expected="none", fix="step until it is over")
        if not self.wires.intact:
            raise PluginError("migration: a rank was lost in an earlier one; fix: restart the server to migrate again")
        self.refusal = ""
        before = np.array(old, np.int32)
        if not callable(new) and np.array_equal(before, new):
            try:
                self._switch(list(range(len(before))), before)
            except Exception as error:
                self._end("switching maps failed", error)
            return
        self._serial += 1
        migration = self._now = Migration(time.monotonic())
        if callable(new):
            migration.planned = self._thread.submit(self._plan, migration, before, new)
        else:
            self._plan(migration, before, lambda: new)
            migration.planned.set_result(None)

    def _plan(self, migration: Migration, old: NDArray[np.int32], planned: Callable[[], ArrayLike]) -> None:
        """Never raises: the others wait for the vote."""
        try:
            migration.new = np.array(planned(), np.int32)
        except Exception as error:
            self.wires.intact = False
            migration.problem = f"planning: {_one_line(error)}"
            return
        try:
            way = self._ways.between(old, migration.new, self.layers, self._serial)
        except Exception as error:
            migration.problem = f"planning: {_one_line(error)}"
            return
        migration.batches, migration.digest = way.batches, way.digest
        self._ways.announce(way, self._serial)

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
            migration.planned.result()
            if migration.committed < len(migration.staged):
                migration.staged[migration.committed].result()
            self._cast(migration)
            self._decide(self._ahead)

    def _cast(self, migration: Migration) -> None:
        migration.watch(self.budget)
        try:
            self._votes.send(migration.vote(self.wires.intact))
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
        if verdict.staged == PLANNING:
            return
        try:
            while migration.committed < min(verdict.staged, len(migration.batches)) and limit > 0:
                self._commit(migration)
                limit -= 1
            if migration.committed == len(migration.batches):
                self._complete(migration)
                return
        except Exception as error:
            self._end("committing failed with a layer half in place", error)
        self._stage(migration)

    def _stage(self, migration: Migration) -> None:
        """The same batches on every rank: which ones depends on the verdicts alone."""
        ahead = migration.batches[: migration.committed + self._ahead]
        for number in range(len(migration.staged), len(ahead)):
            if not migration.can_stage(number):
                return
            migration.progress = time.monotonic()
            batch, half = ahead[number], number % self._ahead
            migration.staged.append(batch.transfer.filled(self._thread, batch.layers, half))

    @torch.inference_mode()
    def _commit(self, migration: Migration) -> None:
        batch = migration.batches[migration.committed]
        for staged in migration.staged[migration.committed].result():
            staged.write(self.layers[staged.layer])
        self._switch(batch.layers, batch.placed[batch.layers])
        migration.committed += 1

    def _complete(self, migration: Migration) -> None:
        """What stays where it is may be used otherwise: by other weights of its copies."""
        moved = migration.layers
        stay = [layer for layer in range(len(self.layers)) if layer not in moved]
        if stay:
            self._switch(stay, migration.new[stay])
        self._now = None
        if self.wires.rank == 0 and moved:
            seconds = time.monotonic() - migration.began
            logger.info("migration %d: %d layers in %.2f s", self._serial, len(moved), seconds)

    def _refuse(self, migration: Migration, why: str) -> None:
        self.refusal = f"{why}; here: {migration.reason}" if migration.reason else why
        logger.log(
            logging.ERROR if migration.reason or self.wires.rank == 0 else logging.DEBUG,
            "migration %d refused after %d of %d changed layers, the others serve on as they are placed: %s%s",
            self._serial, len(migration.layers_done), len(migration.layers), self.refusal,
            "" if self.wires.intact else "; a rank was lost: no migration before the server is restarted",
        )  # fmt: skip

    def _end(self, what: str, error: Exception) -> NoReturn:
        """Weights or maps may differ between ranks: nothing may be served any more, whoever catches exceptions."""
        logger.critical("migration %d: %s, rank %d ends: %s", self._serial, what, self.wires.rank, _one_line(error))
        logging.shutdown()
        os._exit(EXIT_CODE)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
