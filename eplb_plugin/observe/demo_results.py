"""What `scripts/demo` leaves in results.json, and its table, which the terminal and the report show alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from ..errors import mismatch
from ..files import has_kind, read_foreign

KIND: Final = "eplb_plugin demo 1"
WITHOUT = "none"  # the arm without EPLB
EQUAL = 1e-3  # of log-probabilities
Rows = list[tuple[str, list[str]]]


class DemoArm(BaseModel):
    """One server's figures; means over the measured pass. figures: latencies, `ttft_p50` in ms."""

    arm: str
    title: str
    figures: Mapping[str, float]
    balancedness: float
    copies_per_token: float
    slots_moved: int
    rebalances: int
    largest_logprob_difference: float

    @property
    def has_eplb(self) -> bool:
        return self.arm != WITHOUT


class DemoResults(BaseModel):
    """title: what was served, on what. prompts: how many were answered greedily in every arm, the first is the
    reference. load, eplb, layout, machine: as they were set."""

    kind: Literal["eplb_plugin demo 1"] = KIND
    engine: str
    title: str
    prompts: int
    metrics: Sequence[str]
    percentiles: Sequence[int]
    load: Mapping[str, Any]
    eplb: Mapping[str, Any]
    layout: Mapping[str, Any]
    machine: Mapping[str, Any]
    arms: list[DemoArm] = Field(min_length=1)

    def table(self) -> tuple[Rows, Rows]:
        """Rows of what is counted, and of what is measured: a name, and a cell for every arm."""

        def row(name: str, cell: Callable[[DemoArm], str]) -> tuple[str, list[str]]:
            return name, [cell(arm) for arm in self.arms]

        first = self.arms[0]
        counted = [
            row("cross-node copies / token (counted)", lambda one: f"{one.copies_per_token:.3f}"),
            row("balancedness, held-out steps", lambda one: f"{one.balancedness:.3f}"),
            row("rebalances", lambda one: str(one.rebalances) if one.has_eplb else "-"),
            row("expert slots moved", lambda one: str(one.slots_moved) if one.has_eplb else "-"),
            row(f"output equal to {first.title}", lambda one: "reference" if one is first else self._equal(one)),
        ]
        shares = " / ".join(f"P{share}" for share in self.percentiles)
        measured = [
            row(f"{metric.upper()} {shares}, ms", lambda one, metric=metric: self._latencies(one, metric))  # type: ignore[misc]
            for metric in self.metrics
        ]
        plain = next((one.figures["itl_p99"] for one in self.arms if not one.has_eplb), None)
        if plain is not None:
            ratio = "ITL P99 with rebalances, times that without"
            measured.append(row(ratio, lambda one: f"{one.figures['itl_p99'] / plain:.2f}"))
        measured.append(row("output tokens / s", lambda one: f"{one.figures['output_tokens_per_second']:.0f}"))
        return counted, measured

    def _latencies(self, arm: DemoArm, metric: str) -> str:
        return " / ".join(f"{arm.figures[f'{metric}_p{share}']:.0f}" for share in self.percentiles)

    def _equal(self, arm: DemoArm) -> str:
        return f"yes, {self.prompts} of {self.prompts} prompts" if arm.largest_logprob_difference < EQUAL else "NO"


def is_demo(path: str | os.PathLike[str]) -> bool:
    """Whether this is such a file; False also for what cannot be read."""
    return has_kind(path, KIND)


def read_demo(path: str | os.PathLike[str]) -> DemoResults:
    """Raises PluginError in one line on anything else."""
    try:
        return DemoResults.model_validate_json(read_foreign(path, "demo's results"))
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]
        raise mismatch(str(path), found=found, expected=KIND, fix="run scripts/demo again") from None
