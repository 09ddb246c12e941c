"""How figures are named and printed."""

from __future__ import annotations

import numpy as np

from eplb_plugin.cli.judged import HEADINGS, cells, figures, headings, layer_figures
from eplb_plugin.planning.score import LayerScores


def test_figures_are_means_and_layers_have_their_own() -> None:
    """Under the same names, in the order of the headings; what is not known is a dash."""
    scores = LayerScores(**{name: np.array([number, number + 1.0]) for number, name in enumerate(HEADINGS)})
    mean = figures(scores)
    assert mean == {name: number + 0.5 for number, name in enumerate(HEADINGS)}
    rows = layer_figures(scores, np.array([3, 60]))
    assert [row["layer"] for row in rows] == [3, 60]
    assert [rows[1][name] for name in HEADINGS] == [1.0, 2.0, 3.0, 4.0]
    assert cells(mean) == ["0.500", "1.500", "2.500", "3.500"]
    assert cells({"balancedness": 0.98765}) == ["0.988", "–", "–", "–"]


def test_steps_have_a_column_beside_the_windows_where_they_are_known() -> None:
    even = {"balancedness": 0.9, "step_balancedness": 0.8}
    assert list(headings([{"balancedness": 0.9}])) == list(HEADINGS)
    assert list(headings([{"balancedness": 0.9}, even]))[:2] == ["balancedness", "step_balancedness"]
    assert cells(even, headings([even])) == ["0.900", "0.800", "–", "–", "–"]
