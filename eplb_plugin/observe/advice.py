"""What EPLB would bring, from a recording made without it: every policy and dispatch, judged on unseen tokens.

A plan is made from one half of the recording and judged on the other, both ways round, so that every figure has two
values: what they differ by is how sure it is. All comparisons are with the same tokens served as they are now, experts
in order of ids without redundant ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import PluginError, mismatch
from ..placement import linear_placement
from ..plan_types import Dispatch, Plan, PlanOptions, Policy
from ..planning.forecast import forecast_error
from ..planning.plan import plan
from ..planning.planner import plan_of
from ..planning.price import move_seconds, step_seconds
from ..planning.sample import knows_tokens
from ..planning.score import expected_rank_load, layer_balancedness, moved_slots
from ..planning.step_balance import loads_by_quotas
from ..statistics import RoutingStatistics
from ..topology import Topology
from .halves import split
from .judging import evened_steps, judge_draws, judge_steps, recorded_steps


class Both(NamedTuple):
    """A figure in the two directions: planned on the first half, and on the second."""

    forth: float
    back: float

    @property
    def mean(self) -> float:
        return (self.forth + self.back) / 2.0

    @property
    def spread(self) -> float:
        """What the two differ by from their mean."""
        return abs(self.forth - self.back) / 2.0


class Cluster(NamedTuple):
    """Where the recorded tokens would be served. num_groups: of group-limited routing; step_tokens: of a step of all
    ranks, of which halves have one at the least (`whole_steps`); None: it is not known which tokens are one step's."""

    nodes: int
    ranks_per_node: int
    num_groups: int = 1
    step_tokens: int | None = None


@dataclass(frozen=True)
class Candidate:
    """redundant: experts per layer above one slot for each; exact: every step's ranks are evened out by its own counts,
    keeping the wishes of `dispatch`."""

    policy: Policy
    dispatch: Dispatch
    redundant: int
    exact: bool = False


@dataclass(frozen=True)
class Outcome:
    """One candidate. Shares are of what is there without EPLB; None: not to be known from this recording.

    balancedness, cross_node_copies (per token), busiest_ingress, step_balancedness: as in planning/score.py, on the
    unseen half.
    work_saved: share of the busiest ranks' selections, over all layers. copies_saved: share of the cross-node copies.
    first_moves: slots that the first rebalance fills; next_moves: those of the one after it, planned from the other
    half.
    gigabytes_moved: of the latter. memory_gib: weights of the redundant experts, per rank.
    break_even_tokens: that must be served until the later rebalance has paid for its transfer; inf: never.
    time_saved: share of the time that busiest ranks and copies take by the prices given; None: not all are given.
    """

    candidate: Candidate
    balancedness: Both
    work_saved: Both
    cross_node_copies: Both | None
    copies_saved: Both | None
    busiest_ingress: Both | None
    first_moves: Both
    next_moves: Both
    slots: int
    gigabytes_moved: float | None
    memory_gib: float | None
    break_even_tokens: Both | None
    step_balancedness: Both | None = None
    time_saved: Both | None = None


@dataclass(frozen=True)
class Survey:
    """balancedness, cross_node_copies, step_balancedness: without EPLB, on the halves. load_change: relative, of an
    expert's load between the halves. has_tokens: whether it is known which experts a token uses together; without, the
    halves are made by drawing selections, which shows the noise of counting and no change of traffic."""

    outcomes: list[Outcome]
    balancedness: Both
    cross_node_copies: Both | None
    has_tokens: bool
    tokens_per_half: int
    load_change: float
    step_balancedness: Both | None = None


def survey(
    window: RoutingStatistics, cluster: Cluster, candidates: Sequence[Candidate],
    *, options: PlanOptions | None = None, expert_bytes: float | None = None,
) -> Survey:  # fmt: skip
    """Try every candidate on `window`; one for `exact` is left out where its placement has too many replicas for it.

    options: prices, for the break-even; expert_bytes: of one expert in one layer, for memory and bytes moved.
    Raises PluginError if slots do not divide onto ranks, or the recording is empty.
    """
    halves = split(window, cluster.step_tokens)
    nodes, ranks_per_node = cluster.nodes, cluster.ranks_per_node
    least = Topology(nodes, ranks_per_node, slots_of(window.num_experts, nodes * ranks_per_node))
    now = [_now(half, least) for half in halves]
    judged = [_judge(made, half, cluster) for made, half in zip(now, reversed(halves), strict=True)]
    outcomes = []
    for one in candidates:
        slots = slots_of(window.num_experts, least.num_ranks, one.redundant)
        topology = Topology(nodes, ranks_per_node, slots)
        runs = [_run(one, topology, halves[way], halves[1 - way], cluster.num_groups) for way in (0, 1)]
        priced = [_Priced(None, None)] * 2 if options is None or one.exact else [
            _priced(now[way], *runs[way], halves[1 - way], options) for way in (0, 1)
        ]  # fmt: skip
        try:
            after = [_judge(run[0], half, cluster, one.exact) for run, half in zip(runs, reversed(halves), strict=True)]
        except PluginError:
            if not one.exact:
                raise
            continue
        outcomes.append(_outcome(one, runs, judged, after, priced, expert_bytes, window.num_experts))
    tokens = min(int(half.num_tokens.max(initial=0)) for half in halves)
    change = forecast_error(halves)
    return Survey(
        outcomes, Both(*(one.balancedness for one in judged)), _both(one.copies for one in judged),
        knows_tokens(window), tokens, float(np.nanmean(change)) if np.isfinite(change).any() else float("nan"),
        _both(one.steps for one in judged),
    )  # fmt: skip


def slots_of(experts: int, ranks: int, redundant: int | None = None) -> int:
    """Slots per rank with so many redundant experts; None: as few as there can be. PluginError if ranks differ."""
    least = -experts % ranks
    redundant = least if redundant is None else redundant
    if (experts + redundant) % ranks or redundant < 0:
        nearest = max(least, least + round((redundant - least) / ranks) * ranks)
        expected = f"{least} or more by steps of {ranks}, so that {ranks} ranks have equally many slots"
        raise mismatch("redundant experts", found=redundant, expected=expected, fix=f"the nearest is {nearest}")
    return (experts + redundant) // ranks


class _Judged(NamedTuple):
    balancedness: float
    busiest: float  # selections of the busiest rank / those of the mean rank, summed over layers
    copies: float | None
    ingress: float | None
    steps: float | None


def _now(window: RoutingStatistics, topology: Topology) -> Plan:
    start = linear_placement(window.num_layers, window.num_experts, topology.num_slots, window.layer_ids)
    return plan_of(start, topology, "hash")


def _run(
    one: Candidate, topology: Topology, known: RoutingStatistics, unseen: RoutingStatistics, num_groups: int
) -> tuple[Plan, Plan]:
    options = PlanOptions(exact=one.exact)
    first = plan(known, topology, policy=one.policy, dispatch=one.dispatch, num_groups=num_groups, options=options)
    following = plan(
        unseen, topology, policy=one.policy, previous=first.placement, dispatch=one.dispatch, num_groups=num_groups,
        options=options,
    )  # fmt: skip
    return first, following


def _judge(made: Plan, unseen: RoutingStatistics, cluster: Cluster, exact: bool = False) -> _Judged:
    """By tokens in steps if they are known; else by the loads of recorded steps, and by tokens or loads otherwise."""
    tokens, by_step = unseen.sample, cluster.step_tokens
    if tokens is not None and by_step is not None:
        scores = judge_steps(tokens, made, by_step, 1, 0, exact=exact)
    elif exact and unseen.steps is not None:
        balance = layer_balancedness(loads_by_quotas(unseen.steps, made).sum(axis=0))
        return _of_loads(balance, evened_steps(unseen, made))
    elif tokens is None:
        balance = layer_balancedness(expected_rank_load(unseen.load, made))
        return _of_loads(balance, recorded_steps(unseen, made))
    else:
        scores = replace(judge_draws(tokens, made, 1, 0), step_balancedness=recorded_steps(unseen, made))
    mean = scores.mean()
    return _Judged(
        mean.balancedness, float((1.0 / scores.balancedness).sum()), mean.cross_node_copies, mean.busiest_ingress,
        mean.step_balancedness,
    )  # fmt: skip


def _of_loads(balance: NDArray[np.float64], steps: float | None) -> _Judged:
    return _Judged(float(balance.mean()), float((1.0 / balance).sum()), None, None, steps)


class _Priced(NamedTuple):
    """break_even: tokens until the time that the first plan saves is that of the moves to the following one."""

    break_even: float | None
    time_saved: float | None


def _priced(now: Plan, first: Plan, following: Plan, unseen: RoutingStatistics, options: PlanOptions) -> _Priced:
    """By the time that `first` saves on the unseen half."""
    before = float(step_seconds(now, unseen, options).sum())
    saved = before - float(step_seconds(first, unseen, options).sum())
    complete = options.seconds_per_selection and options.token_bytes and before
    share = saved / before if complete else None
    if saved <= 0.0:
        return _Priced(float("inf"), share)
    tokens = float(unseen.num_tokens.max(initial=0))
    return _Priced(float(move_seconds(following, first, options).sum()) / saved * tokens, share)


def _outcome(
    one: Candidate, runs: Sequence[tuple[Plan, Plan]], before: Sequence[_Judged], after: Sequence[_Judged],
    priced: Sequence[_Priced], expert_bytes: float | None, experts: int,
) -> Outcome:  # fmt: skip
    topology, layers = runs[0][0].topology, runs[0][0].placement.num_layers
    first_moves, next_moves = [], []
    for first, following in runs:
        engine = linear_placement(layers, experts, topology.num_slots, first.placement.layer_ids)
        first_moves.append(float(moved_slots(first.placement, engine, topology).sum()))
        next_moves.append(float(moved_slots(following.placement, first.placement, topology).sum()))
    saved = [
        None if b.copies is None or a.copies is None else (1.0 - a.copies / b.copies if b.copies else 0.0)
        for b, a in zip(before, after, strict=True)
    ]
    per_rank = (topology.num_slots - experts) * layers / topology.num_ranks
    return Outcome(
        one, Both(*(a.balancedness for a in after)),
        Both(*(1.0 - a.busiest / b.busiest for b, a in zip(before, after, strict=True))),
        _both(a.copies for a in after), _both(saved), _both(a.ingress for a in after),
        Both(*first_moves), Both(*next_moves), topology.num_slots * layers,
        None if expert_bytes is None else Both(*next_moves).mean * expert_bytes / 1e9,
        None if expert_bytes is None else per_rank * expert_bytes / 2**30,
        _both(one.break_even for one in priced), _both(a.steps for a in after), _both(one.time_saved for one in priced),
    )  # fmt: skip


def _both(values: Iterable[float | None]) -> Both | None:
    forth, back = values
    return None if forth is None or back is None else Both(forth, back)
