"""The Grafana dashboard asks for metrics that exist, and leaves none out."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

from eplb_plugin.observe.metrics import NAMES

DASHBOARD: dict[str, Any] = json.loads(files("eplb_plugin.observe").joinpath("dashboards", "grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_metric_is_asked_for_and_exists() -> None:
    """The names in all expressions are those that servers show, no more and no fewer."""
    assert {name for text in EXPRESSIONS for name in re.findall(r"eplb_plugin_\w+", text)} == NAMES


def test_panels_are_whole() -> None:
    """Each has a title, says what it shows, filters by model, and lies beside the others, not on them."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert all('{model=~"$model"}' in target["expr"] for target in panel["targets"])
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # fmt: skip
        assert not cells & taken
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(text.count("(") == text.count(")") for text in EXPRESSIONS)
