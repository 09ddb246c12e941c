"""Enable it or not, and with which settings: decided by the figures of `advice.py`, by their worse direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from ..plan_types import PlanOptions
from ..settings.config import parse_config
from .advice import Both, Outcome, Survey

LEAST_WORK = 0.02  # share of the busiest ranks' work that must be saved, in the worse of the two directions
LEAST_COPIES = 0.05  # or share of the cross-node copies, if no more work than LEAST_WORK is lost for it
FEW_TOKENS = 128  # per rank and step: below, others report no gain in decode (vllm-ascend's documentation)
REPAID = 10  # times the break-even that an interval should last, so that moving costs a tenth of what it saves
USUAL_INTERVAL = 3000  # vLLM's step_interval


@dataclass(frozen=True)
class Recommendation:
    """best: the cheapest of those that are about as good as the best; None if there was nothing to choose from."""

    enable: bool
    best: Outcome | None
    reasons: list[str]


def recommend(
    made: Survey, dispatches: Sequence[str], prices: PlanOptions | None = None,
    tokens_per_step: float | None = None, ranks: int = 1,
) -> Recommendation:  # fmt: skip
    """Choose among the outcomes with one of `dispatches`, those that the engine can do; what `exact` would add to the
    best one is said, and is the user's choice.

    Prices decide only if they are complete: without the seconds of a selection, the time that balance saves is not in
    the break-even.
    """
    able = [one for one in made.outcomes if one.candidate.dispatch in dispatches and not one.candidate.exact]
    if not able:
        return Recommendation(False, None, [f"no dispatch was tried that the engine can do: {', '.join(dispatches)}"])
    best = _cheapest_good([one for one in able if _pays(one)] or able)
    reasons = [f"work of the busiest ranks {_change(best.work_saved)}; wanted: -{LEAST_WORK:.0%}"]
    if best.copies_saved is not None:
        reasons.append(f"cross-node copies {_change(best.copies_saved)}; wanted, or else: -{LEAST_COPIES:.0%}")
    reasons += _why(best, able)
    enable = _pays(best)
    complete = prices is not None and bool(prices.seconds_per_selection)
    if complete and best.break_even_tokens is not None and max(best.break_even_tokens) == float("inf"):
        enable = False
        reasons.append("by the prices given, no time is saved in one of the two directions")
    if tokens_per_step is not None and tokens_per_step / ranks < FEW_TOKENS:
        reasons.append(
            f"only {tokens_per_step / ranks:.0f} tokens per rank and step: others report no gain below {FEW_TOKENS}"
        )
    reasons += _of_exact(made, best)
    if not made.has_tokens:
        reasons.append("loads alone do not show which experts a token uses together: nothing is said of nodes")
    return Recommendation(enable, best, reasons)


def settings_yaml(
    made: Recommendation, nodes: int, ranks_per_node: int,
    options: PlanOptions | None = None, tokens_per_step: float | None = None,
) -> str:  # fmt: skip
    """A settings file for the best outcome, checked as the server would; the first line says what is recommended."""
    assert made.best is not None
    one = made.best.candidate
    values: dict[str, object] = {
        "policy": one.policy, "dispatch": one.dispatch, "num_redundant_experts": one.redundant,
        "topology": {"nodes": nodes, "ranks_per_node": ranks_per_node},
    }  # fmt: skip
    if options is not None and options.link_gbps is not None:
        prices = ("link_gbps", "token_bytes", "seconds_per_selection")
        values["price"] = {name: getattr(options, name) for name in prices if getattr(options, name) is not None}
    steps = _steps(made.best.break_even_tokens, tokens_per_step)
    if steps is not None and REPAID * steps > USUAL_INTERVAL:
        values["step_interval"] = int(min(REPAID * steps, 100_000_000))
    parse_config(values, "the recommended settings")
    title = "recommended" if made.enable else "NOT recommended; the best that was tried"
    comments = "".join(f"# {reason}\n" for reason in made.reasons)
    return f"# eplb-plugin advise: {title}\n{comments}{yaml.safe_dump(values, sort_keys=False)}"


def _pays(one: Outcome) -> bool:
    work = min(one.work_saved)
    return work >= LEAST_WORK or (_worse(one.copies_saved) >= LEAST_COPIES and work >= -LEAST_WORK)


def gain(one: Outcome) -> float:
    """What decides between candidates: time, if all prices are given; else work and copies, a point of each alike."""
    return min(one.work_saved) + _worse(one.copies_saved) if one.time_saved is None else min(one.time_saved)


def _cheapest_good(outcomes: Sequence[Outcome]) -> Outcome:
    """Of those within LEAST_WORK of the most gain, the one with fewest redundant experts, then fewest moves."""
    most = max(map(gain, outcomes))
    good = [one for one in outcomes if gain(one) >= most - LEAST_WORK]
    return min(good, key=lambda one: (one.candidate.redundant, one.next_moves.mean))


def _why(best: Outcome, able: Sequence[Outcome]) -> list[str]:
    """In two sentences: what it was chosen by, and what was given up for it."""
    if best.time_saved is not None:
        return [f"by the prices given, steps take {_change(best.time_saved)} of the time that ranks and copies need"]
    if best.copies_saved is None:
        return []
    told = ["without prices a point of work counts like a point of copies: pass --seconds-per-selection, --link-gbps"]
    most = max(able, key=lambda one: min(one.work_saved))
    if min(most.work_saved) > min(best.work_saved) + LEAST_WORK and most.copies_saved is not None:
        title = f"{most.candidate.policy}, {most.candidate.dispatch}, {most.candidate.redundant} redundant experts"
        told.append(f"{title}, saves more work ({-most.work_saved.mean:+.0%}), copies {-most.copies_saved.mean:+.0%}")
    return told


def _of_exact(made: Survey, best: Outcome) -> list[str]:
    """What `exact` would add to the best, with as many redundant experts or the next number that was tried."""
    known = [one for one in made.outcomes if one.candidate.exact and one.step_balancedness is not None]
    more = [one for one in known if one.candidate.redundant >= best.candidate.redundant]
    if not more or best.step_balancedness is None:
        return []
    exact = min(more, key=lambda one: one.candidate.redundant)
    assert exact.step_balancedness is not None
    text = f"exact, {exact.candidate.redundant} redundant experts, would bring the balance of single steps from "
    text += f"{best.step_balancedness.mean:.2f} to {exact.step_balancedness.mean:.2f}"
    if best.cross_node_copies is not None and exact.cross_node_copies is not None:
        text += f", copies per token from {best.cross_node_copies.mean:.2f} to {exact.cross_node_copies.mean:.2f}"
    return [f"{text}; docs/dispatch.md says when that pays"]


def _worse(figure: Both | None) -> float:
    return 0.0 if figure is None else min(figure)


def _change(saved: Both) -> str:
    return f"{-saved.forth:+.1%} and {-saved.back:+.1%} (planned on the first half, on the second)"


def _steps(break_even: Both | None, tokens_per_step: float | None) -> float | None:
    if break_even is None or tokens_per_step is None or max(break_even) == float("inf"):
        return None
    return max(break_even) / tokens_per_step
