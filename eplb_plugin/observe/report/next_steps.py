"""What to do next: the advice in two sentences, its reasons, and the settings to start a server with."""

from __future__ import annotations

from html import escape

from ..advice_file import Advice, Both, Tried
from .markup import coded, folded


def of_advice(advice: Advice) -> str:
    found = advice.outcome
    if advice.best is None or found is None:
        return f"<p>{escape('; '.join(advice.reasons))}</p>"
    one = advice.best
    settings = f"policy {one.policy}, dispatch {one.dispatch} and {one.redundant} redundant experts a layer"
    verdict = f"Enable EPLB with {settings}:"
    if not advice.enable:
        verdict = f"Do not enable EPLB. With the best that was tried, {settings},"
    first = f"{verdict} on the half of the recording that it was not planned on, {_saved(found)}."
    lead = f'<p class="lead">{coded(first)} {coded(_later(found))}</p>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in advice.reasons)
    shown = "" if advice.settings is None else f"<pre>{escape(advice.settings)}</pre>"
    return lead + folded("Reasons", f"<ul>{reasons}</ul>") + (folded("Settings (YAML)", shown) if shown else "")


def _saved(found: Tried) -> str:
    text = f"the busiest ranks do {_change(found.work_saved, 'work')}"
    return (
        text if found.copies_saved is None else f"{text}, and {_change(found.copies_saved, 'copies')} go to other nodes"
    )


def _change(saved: Both, what: str) -> str:
    low, high = sorted(value or 0.0 for value in saved)
    mean = (low + high) / 2.0
    than = "fewer" if what == "copies" else "less"
    word = than if mean >= 0 else "more"
    sign = 1.0 if mean >= 0 else -1.0
    ends = sorted((sign * low, sign * high))
    return f"{abs(mean):.0%} {word} {what} ({ends[0]:.0%} to {ends[1]:.0%})"


def _later(found: Tried) -> str:
    moves = sum(value or 0.0 for value in found.next_moves) / 2.0
    text = f"A later rebalance moves {moves:.0f} of {found.slots} slots"
    tokens = found.break_even_tokens
    if tokens is None:
        return f"{text}; whether that pays, `eplb-plugin bench` measures on your servers."
    if None in tokens:
        return f"{text}, which by the prices given is never repaid."
    return f"{text}, which by the prices given is repaid after {max(value or 0.0 for value in tokens):,.0f} tokens."
