"""Co-activation: slots in the order of nodes, a square round each node, and the share of pairs inside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.report.given import Given, Placed, placed
from eplb_plugin.observe.report.pairs import of_pairs
from report_pages import Text, charts


def test_squares_hold_what_the_caption_says(shown: Placed) -> None:
    html = of_pairs(shown, 5)
    before, after = charts(html)
    for made in (before, after):
        pairs = np.array(made["data"][0]["z"])
        inside = np.zeros_like(pairs, bool)
        for square in made["layout"]["shapes"]:
            first, last = round(square["x0"] + 0.5), round(square["x1"] + 0.5)
            inside[first:last, first:last] = True
        assert f"{pairs[inside].sum() / pairs.sum():.1%} of pairs on one node" in Text(html).text
        assert np.array_equal(pairs, pairs.T)
        assert not pairs.diagonal().any()  # an expert is not used together with itself
        assert len(set(made["data"][0]["x"])) == 36
    assert before["data"][0]["zmax"] == after["data"][0]["zmax"]
    assert "Layer 5" in Text(html).text


def test_the_layer(shown: Placed, given: Given) -> None:
    """By default the least even one; one that was not recorded is refused; without pairs there is no picture."""
    assert "Layer " in of_pairs(shown, None)
    with pytest.raises(PluginError, match="--layer: found 4"):
        of_pairs(shown, 4)
    loads = placed(replace(given, windows={"l": replace(shown.newest, coactivation=None)}))
    assert loads is not None
    assert of_pairs(loads, None) == ""
