"""What `plan` and `replay` share: how figures are named and printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..planning.score import LayerScores

Figures = dict[str, float]
HEADINGS = {
    "balancedness": "balance",
    "node_fan_out": "fan-out",
    "cross_node_copies": "copies",
    "busiest_ingress": "ingress",
}
PER_STEP = {"step_balancedness": "steps"}  # where tokens, or loads, are known by step
NOTES = (
    "balance: mean / max load of ranks; fan-out: nodes that a token visits; copies: to other nodes, per token;",
    "ingress: of the busiest node / mean",
)
OF_STEPS = "steps: balance of single steps, each of which waits for its own busiest rank"


def figures(scores: LayerScores) -> Figures:
    return {name: figure for name, figure in asdict(scores.mean()).items() if figure is not None}


def headings(rows: Iterable[Figures]) -> dict[str, str]:
    """Those of a table with these rows: that of steps stands beside the window's if any row knows of them."""
    first, *others = HEADINGS.items()
    known = any(name in row for row in rows for name in PER_STEP)
    return dict([first, *(PER_STEP.items() if known else ()), *others])


def notes(headings: dict[str, str]) -> list[str]:
    """What the headings mean."""
    return [*NOTES, *([OF_STEPS] if set(PER_STEP) <= set(headings) else [])]


def layer_figures(scores: LayerScores, layer_ids: NDArray[Any]) -> list[dict[str, float]]:
    return [
        {"layer": int(number), **{name: float(getattr(scores, name)[row]) for name in HEADINGS}}
        for row, number in enumerate(layer_ids)
    ]


def cells(row: Figures, headings: Iterable[str] = HEADINGS) -> list[str]:
    """In the order of the headings; a figure that is not known is a dash."""
    return [f"{row[name]:.3f}" if name in row else "–" for name in headings]
