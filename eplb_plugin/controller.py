"""The Rebalancer: from what was recorded to a placement that every rank agrees on.

Engines lend it process groups and a step tick; it never calls an engine. One Rebalancer serves one EP group and holds
one entry per model (a draft model is an entry of its own). Rank 0 of the group plans; the message to the others is a
placement or an error; all ranks vote on what they received. Anything but a unanimous yes keeps the old placement.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from .config import PluginConfig
from .errors import PluginError, mismatch
from .history import History
from .placement import Placement
from .plan_types import Plan, PlanOptions, Policy
from .planning.job import plan_of
from .planning.plan import plan
from .planning.score import balancedness, expected_rank_load, judge, moved_slots
from .recording.recorder import Recorder
from .recording.snapshot import snapshot
from .statistics import RoutingStatistics
from .topology import Topology

logger = logging.getLogger("eplb_plugin")


@dataclass
class ModelEntry:
    """What the Rebalancer knows of one model.

    recorder: None for a draft model, which is planned by the engine's own load counts.
    owner_group_size: consecutive ranks that route the same token.
    expert_bytes: weights of one expert in one layer. window_steps, step_interval: engine steps that are recorded before
    each rebalance, and between two. They matter where moves have a price.
    """

    name: str
    topology: Topology
    policy: Policy
    num_experts: int
    num_groups: int
    layer_ids: list[int]
    recorder: Recorder | None = None
    owner_group_size: int = 1
    expert_bytes: int = 0
    window_steps: int = 1
    step_interval: int = 1
    history: History = field(default_factory=lambda: History(1))
    rebalances: int = 0


class Rebalancer:
    """Snapshot → plan → broadcast → vote, for the models of one EP group."""

    def __init__(self, config: PluginConfig) -> None:
        self.config = config
        self.entries: dict[str, ModelEntry] = {}

    def add(self, key: str, entry: ModelEntry, planning_rank: bool) -> float:
        """Register a model; on the planning rank, compile the planner now so that no rebalance waits for it.

        Returns the seconds which that took.
        """
        self.entries[key] = entry
        entry.history = History(self.config.forecast_windows)
        return self._warm_up(entry) if planning_rank else 0.0

    def observe(self, key: str, group: dist.ProcessGroup) -> None:
        """Collective over the EP group: take the snapshot of the window that just ended."""
        entry = self.entries[key]
        if entry.recorder is None:
            return
        try:
            entry.history.add(snapshot(entry.recorder, group, entry.owner_group_size, entry.layer_ids))
        except PluginError as error:  # refused on the planning rank: the others learn of it from its message
            entry.history.refuse(error)

    def decide(
        self, key: str, previous: NDArray[Any], group: dist.ProcessGroup, load: NDArray[Any] | None = None
    ) -> NDArray[np.int32]:
        """Collective over `group`, a CPU group that no other thread uses: the placement all ranks will move to.

        previous: [L, P] the placement in force. load: [L, E], for an entry without a recorder.
        Returns [L, P]; `previous` itself if planning failed, or any rank received something else than was sent.
        """
        entry = self.entries[key]
        placed = Placement(previous, np.array(entry.layer_ids, np.int32))
        if load is not None:
            entry.history.add(RoutingStatistics(load, layer_ids=np.array(entry.layer_ids, np.int32)))
        message = self._propose(entry, placed) if dist.get_rank(group) == 0 else b""
        received = _broadcast(message, group)
        entry.rebalances += 1
        accepted: Placement | None = None
        problem = ""
        try:
            accepted = _accept(received, placed)
        except Exception as error:  # a damaged message must end in the vote as well, or the other ranks wait forever
            problem = _reason(error)
        if not _unanimous(accepted is not None, group):
            logger.error(
                "rebalance %d of %s refused, the old placement stays: %s",
                entry.rebalances, entry.name, problem or "another rank did not accept the plan",
            )  # fmt: skip
            return placed.phy2log
        assert accepted is not None
        return accepted.phy2log

    def _propose(self, entry: ModelEntry, placed: Placement) -> bytes:
        """On the planning rank: a placement, or the reason why there is none. Never raises: all ranks wait for it."""
        try:
            if not entry.history.has_tokens:
                logger.info("rebalance of %s skipped: no token was routed in the window", entry.name)
                return encode(placed)
            statistics = entry.history.expected()
            made = self._plan(entry, statistics, placed, self._options(entry))
            if self.config.logging.rebalances:
                logger.info("%s", _describe(entry, statistics, placed, made))
            return encode(made.placement)
        except Exception as error:  # whatever fails here must reach the other ranks, or they wait forever
            logger.debug("planning failed", exc_info=True)
            return encode_error(f"planning failed: {_reason(error)}")

    def _options(self, entry: ModelEntry) -> PlanOptions:
        """With the price of a move, where the settings name one and the entry's gain can be told."""
        options, price = self.config.plan_options, self.config.price
        if price is None or (entry.recorder is None and not price.seconds_per_selection):
            return options
        return replace(
            options,
            load_error=entry.history.load_error() or options.load_error,
            expert_bytes=entry.expert_bytes,
            link_gbps=price.link_gbps,
            token_bytes=price.token_bytes,
            seconds_per_selection=price.seconds_per_selection,
            window_steps=entry.window_steps,
            horizon_steps=price.horizon_steps or entry.step_interval,
        )

    def _plan(self, entry: ModelEntry, statistics: RoutingStatistics, placed: Placement, options: PlanOptions) -> Plan:
        return plan(
            statistics,
            entry.topology,
            policy=entry.policy,
            previous=placed,
            dispatch=self.config.dispatch,
            num_groups=entry.num_groups,
            options=options,
        )

    def _warm_up(self, entry: ModelEntry) -> float:
        """Plan once for made-up routing of one layer: numba compiles (or loads its cache) for these types."""
        experts, slots = entry.num_experts, entry.topology.num_slots
        placed = Placement(np.arange(slots, dtype=np.int32)[None] % experts)
        if entry.recorder is None:
            statistics = RoutingStatistics(np.ones((1, experts)))
        else:
            rows = np.random.default_rng(0).integers(0, experts, (1, 64, entry.recorder.sample.shape[2]))
            statistics = RoutingStatistics.from_topk(rows, experts)
        return self._plan(replace(entry, layer_ids=[0]), statistics, placed, self._options(entry)).seconds


def encode(placement: Placement) -> bytes:
    """Header line (JSON, with a digest of the body) and body (phy2log as int32)."""
    body = np.ascontiguousarray(placement.phy2log, np.int32).tobytes()
    header = {"digest": hashlib.sha256(body).hexdigest(), "shape": placement.phy2log.shape}
    return json.dumps(header).encode() + b"\n" + body


def encode_error(reason: str) -> bytes:
    """A message that makes every rank keep the old placement."""
    return json.dumps({"error": reason}).encode() + b"\n"


def _accept(message: bytes, placed: Placement) -> Placement:
    """The placement in a message. Raises PluginError if it is an error, damaged, or does not fit `placed`."""
    head, _, body = message.partition(b"\n")
    header = json.loads(head)
    if "error" in header:
        raise PluginError(header["error"])
    digest = hashlib.sha256(body).hexdigest()
    if digest != header["digest"]:
        raise mismatch("plan digest", found=digest[:16], expected=header["digest"][:16], fix="check the network")
    if tuple(header["shape"]) != placed.phy2log.shape:
        raise mismatch("plan", found=header["shape"], expected=placed.phy2log.shape, fix="report this")
    received = Placement(np.frombuffer(body, np.int32).reshape(placed.phy2log.shape), placed.layer_ids)
    if received.num_experts != placed.num_experts:
        raise mismatch("plan", found=f"{received.num_experts} experts", expected=placed.num_experts, fix="report this")
    return received


def _reason(error: Exception) -> str:
    """One line."""
    text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _broadcast(message: bytes, group: dist.ProcessGroup) -> bytes:
    """Send rank 0's message to every rank of a CPU group."""
    source = dist.get_global_rank(group, 0)
    length = torch.tensor([len(message)], dtype=torch.int64)
    dist.broadcast(length, src=source, group=group)
    if dist.get_rank(group) == 0:
        buffer = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    else:
        buffer = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(buffer, src=source, group=group)
    return buffer.numpy().tobytes()


def _unanimous(accepted: bool, group: dist.ProcessGroup) -> bool:
    vote = torch.tensor([int(accepted)], dtype=torch.int32)
    dist.all_reduce(vote, op=dist.ReduceOp.MIN, group=group)
    return bool(vote.item())


def _describe(entry: ModelEntry, statistics: RoutingStatistics, placed: Placement, made: Plan) -> str:
    """One line for the log. All figures are in-sample: what the plan is expected to do on the window it was made of."""
    before = plan_of(placed, entry.topology, made.dispatch)
    balance = [balancedness(expected_rank_load(statistics.load, one)) for one in (before, made)]
    moved = int(moved_slots(made.placement, placed, entry.topology).sum())
    text = (
        f"rebalance {entry.rebalances + 1} of {entry.name}: planned balancedness {balance[0]:.3f} -> {balance[1]:.3f}"
    )
    if statistics.sample is not None and entry.topology.num_nodes > 1:
        rows = statistics.sample
        sources = np.arange(rows.shape[1]) % entry.topology.num_ranks
        copies = [judge(rows, sources, one).cross_node_copies for one in (before, made)]
        text += f", cross-node copies/token {copies[0]:.3f} -> {copies[1]:.3f}"
    text += f", {moved} of {placed.phy2log.size} slots move"
    if made.skipped_layers:
        text += f" (layers that stay because their move would not pay: {made.skipped_layers})"
    text += f", planned in {made.seconds * 1e3:.1f} ms"
    # the engine's load counts, which a draft is planned by, do not say how many tokens they are of
    return f"{text} from {statistics.num_tokens.max()} tokens" if statistics.sample is not None else text
