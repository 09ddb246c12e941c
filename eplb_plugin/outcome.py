"""What a rebalance came to, on the planning rank: one line for the log, and the numbers behind it for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .plan_types import Plan
from .planning.score import balancedness, expected_rank_load, judge, moved_slots
from .statistics import RoutingStatistics

Result = Literal["accepted", "refused", "skipped", "interrupted"]
Change = Literal["rebalance", "re-split"]


@dataclass(frozen=True)
class Assessment:
    """Before and after, in-sample: what the plan is expected to do on the window that it was made for.

    copies: cross-node copies per token; None on one node, or without a sample of tokens. tokens: None where unknown.
    """

    balancedness: tuple[float, float]
    copies: tuple[float, float] | None
    moved_slots: int
    slots: int
    skipped_layers: int
    seconds: float
    tokens: int | None

    def __str__(self) -> str:
        text = "planned balancedness {:.3f} -> {:.3f}".format(*self.balancedness)
        if self.copies is not None:
            text += ", cross-node copies/token {:.3f} -> {:.3f}".format(*self.copies)
        text += f", {self.moved_slots} of {self.slots} slots move"
        if self.skipped_layers:
            text += f" (layers that stay because their move would not pay: {self.skipped_layers})"
        text += f", planned in {self.seconds * 1e3:.1f} ms"
        return text if self.tokens is None else f"{text} from {self.tokens} tokens"


@dataclass(frozen=True)
class Outcome:
    """result: skipped = no token was routed in the window; interrupted = an accepted plan was not, or only in some
    layers, put in force. assessment: None if nothing was planned. change: re-split = new weights, every expert stays.
    """

    model: str
    result: Result
    assessment: Assessment | None = None
    change: Change = "rebalance"


def assess(statistics: RoutingStatistics, before: Plan, made: Plan) -> Assessment:
    """before: the plan in force, of the same topology; statistics: those that `made` was made from."""
    balance = [balancedness(expected_rank_load(statistics.load, one)) for one in (before, made)]
    copies, rows = None, statistics.sample
    if rows is not None and made.topology.num_nodes > 1:
        sources = np.arange(rows.shape[1]) % made.topology.num_ranks
        copies = judge(rows, sources, before).cross_node_copies, judge(rows, sources, made).cross_node_copies
    return Assessment(
        balancedness=(balance[0], balance[1]),
        copies=copies,
        moved_slots=int(moved_slots(made.placement, before.placement, made.topology).sum()),
        slots=made.placement.phy2log.size,
        skipped_layers=made.skipped_layers,
        seconds=made.seconds,
        # the engine's load counts, which a draft is planned by, do not say how many tokens they are of
        tokens=None if rows is None else int(statistics.num_tokens.max()),
    )
