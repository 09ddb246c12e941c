"""What `eplb-plugin advise` prints: every candidate in a table, how sure the figures are, and the advice."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import typer

from .judged import OF_STEPS
from .tables import show, slim

if TYPE_CHECKING:
    from ..observe.advice import Both, Outcome, Survey
    from ..observe.recommendation import Recommendation


def show_advice(
    made: Survey, chosen: Recommendation, num_layers: int, priced: bool, tokens_per_step: float | None
) -> None:
    """priced: whether the time of computing is among what a rebalance saves, and not copies alone."""
    from ..observe.recommendation import gain  # brings numba

    counted = "" if priced else ", in copies saved alone"
    copies = "" if made.cross_node_copies is None else f", {_pair(made.cross_node_copies)} cross-node copies per token"
    steps = made.step_balancedness
    of_steps = "" if steps is None else f" (of single steps {_pair(steps)})"
    typer.echo(f"now, without EPLB: balancedness {_pair(made.balancedness)}{of_steps}{copies}")
    heads = ("balance", *(() if steps is None else ("steps",)), "work", "copies", "ingress", "moves", "repaid")
    table = slim("+n", "policy, dispatch", *heads)
    for outcome in sorted(made.outcomes, key=gain, reverse=True):
        one, is_best = outcome.candidate, outcome is chosen.best
        even, *others = _cells(outcome)
        in_steps = () if steps is None else (_mean(outcome.step_balancedness),)
        name = f"{one.policy} {one.dispatch}{' exact' if one.exact else ''}"
        marked = f"{'→' if is_best else '+'}{one.redundant}"
        table.add_row(marked, name, even, *in_steps, *others, style="bold" if is_best else None)
    show("planned on one half of the recording, judged on the other, both ways; best first", table)
    typer.echo("+n: redundant experts, → the advice; ±: what the two ways differ by from their mean;")
    typer.echo("work: selections of the busiest ranks; copies: to other nodes;")
    if steps is not None:
        typer.echo(f"{OF_STEPS} (mean of both ways);")
    typer.echo("ingress: of the busiest node / mean; moves: share of slots at a later rebalance;")
    typer.echo(f"repaid: tokens until a later rebalance has paid for its transfer{counted}")
    half = f"{made.tokens_per_half} tokens" if made.has_tokens else "drawn selections (only counting noise)"
    typer.echo(f"how sure: halves of {half}; an expert's load differs between them by ±{made.load_change:.0%}")
    memory = {o.candidate.redundant: o.memory_gib for o in made.outcomes if o.memory_gib}
    for count, gib in memory.items():
        typer.echo(f"{count} redundant experts: {gib:.2f} GiB per rank in {num_layers} layers")
    if chosen.best is not None:
        one = chosen.best.candidate
        verdict = "enable it" if chosen.enable else "do not enable it; the best that was tried"
        settings = f"policy {one.policy}, dispatch {one.dispatch}, {one.redundant} redundant experts"
        typer.echo(f"advice: {verdict}: {settings}")
        typer.echo(_price(chosen.best, tokens_per_step))
    for reason in chosen.reasons:
        typer.echo(f"- {reason}")


def _price(outcome: Outcome, tokens_per_step: float | None) -> str:
    """Of a later rebalance under this candidate: what moves, and how long that must serve."""
    size = "" if outcome.gigabytes_moved is None else f", {outcome.gigabytes_moved:.3g} GB"
    text = f"- a later rebalance moves {outcome.next_moves.mean:.0f} of {outcome.slots} slots{size}"
    tokens = outcome.break_even_tokens
    if tokens is None or max(tokens) == math.inf:
        return text
    steps = "" if tokens_per_step is None else f", {max(tokens) / tokens_per_step:.0f} steps"
    return f"{text}, repaid after {_count(max(tokens))} tokens{steps}"


def _cells(outcome: Outcome) -> list[str]:
    moves = outcome.next_moves.mean / outcome.slots
    tokens = outcome.break_even_tokens
    return [
        _pair(outcome.balancedness), _percent(outcome.work_saved),
        "–" if outcome.copies_saved is None else _percent(outcome.copies_saved),
        _mean(outcome.busiest_ingress),
        f"{moves:.0%}",
        "–" if tokens is None else "never" if max(tokens) == math.inf else _count(max(tokens)),
    ]  # fmt: skip


def _mean(figure: Both | None) -> str:
    return "–" if figure is None else f"{figure.mean:.2f}"


def _pair(figure: Both) -> str:
    return f"{figure.mean:.2f}±{f'{figure.spread:.2f}'.lstrip('0')}"


def _percent(saved: Both) -> str:
    return f"{-100 * saved.mean:+.0f}±{100 * saved.spread:.0f}%"


def _count(tokens: float) -> str:
    """Two digits and a unit: 38k, 2.8M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{float(f'{tokens / size:.2g}'):g}{unit}"
    return f"{tokens:.2g}"
