"""What a running server's /metrics say of the plugin now, model by model, and the balance of the last readings."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from ..errors import mismatch

PREFIX = "eplb_plugin_"
READINGS = 40  # kept for the line of blocks
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass
class Reading:
    """One model. None: not known, or not yet. stages: mean seconds; rebalances, resplits: number by result.

    balancedness: least, mean and most of layers; per_step: by what chooses replicas.
    """

    balancedness: tuple[float, float, float] | None = None
    planned_balancedness: float | None = None
    per_step: dict[str, float] = field(default_factory=dict)
    copies: float | None = None
    planned_copies: float | None = None
    crossing: float | None = None
    rebalances: dict[str, int] = field(default_factory=dict)
    resplits: dict[str, int] = field(default_factory=dict)
    moved_slots: int = 0
    moved_bytes: float = 0.0
    last_success: float | None = None
    stalled: bool = False
    stages: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def readings(text: str) -> dict[str, Reading]:
    """text: the exposition format of Prometheus. Raises PluginError for what is none, or has nothing of the plugin."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(PREFIX) and "model" in sample.labels:
                    short = sample.name.removeprefix(PREFIX)
                    samples.setdefault(short, []).append((sample.labels, sample.value))
    except (ValueError, IndexError, KeyError):
        expected = "Prometheus's text format"
        raise mismatch("/metrics", found="other text", expected=expected, fix="check the address") from None
    if not samples:
        fix = "wait for the first window; SGLang needs --enable-metrics, vLLM PROMETHEUS_MULTIPROC_DIR (docs/tools.md)"
        raise mismatch("/metrics", found="nothing of eplb_plugin", expected="its metrics", fix=fix)
    models = sorted({labels["model"] for rows in samples.values() for labels, _ in rows})
    return {model: _of_model(model, samples) for model in models}


def _of_model(model: str, samples: dict[str, list[tuple[dict[str, str], float]]]) -> Reading:
    def by(name: str, label: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in samples.get(name, []) if labels["model"] == model}

    def one(name: str) -> float | None:
        return next((value for labels, value in samples.get(name, []) if labels["model"] == model), None)

    layers = by("balancedness", "stat")
    sums, counts = (by(f"stage_seconds_{end}", "stage") for end in ("sum", "count"))
    return Reading(
        balancedness=(layers["min"], layers["mean"], layers["max"]) if len(layers) == 3 else None,
        planned_balancedness=one("planned_balancedness"),
        per_step=by("balancedness_per_step", "by"),
        copies=one("cross_node_copies_per_token"),
        planned_copies=one("planned_cross_node_copies_per_token"),
        crossing=one("cross_node_fraction"),
        rebalances={name: int(count) for name, count in by("rebalances_total", "result").items()},
        resplits={name: int(count) for name, count in by("resplits_total", "result").items()},
        moved_slots=int(one("moved_slots_total") or 0),
        moved_bytes=one("moved_bytes_total") or 0.0,
        last_success=one("last_success_timestamp_seconds"),
        stalled=bool(one("stalled")),
        stages={stage: seconds / counts[stage] for stage, seconds in sums.items() if counts.get(stage)},
    )


class Course:
    """Balancedness of the last readings of each model, as a line of blocks: empty at 0, full at 1."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[float]] = {}

    def add(self, found: dict[str, Reading]) -> None:
        for model, reading in found.items():
            if reading.balancedness is not None:
                self._kept.setdefault(model, deque(maxlen=READINGS)).append(reading.balancedness[1])

    def line(self, model: str) -> str:
        top = len(BLOCKS) - 1
        return "".join(BLOCKS[round(min(max(value, 0.0), 1.0) * top)] for value in self._kept.get(model, ()))
