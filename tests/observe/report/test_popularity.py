"""Popularity: experts by selections, relative to the mean expert of their layer."""

from __future__ import annotations

import numpy as np

from eplb_plugin import RoutingStatistics
from eplb_plugin.observe.report.popularity import of_popularity
from report_pages import Text, charts


def test_the_busiest_come_first() -> None:
    """Median, least and most of the layers at every place; layers without selections do not count."""
    load = np.array([[1.0, 5.0, 2.0, 0.0], [4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    html = of_popularity(RoutingStatistics(load, layer_ids=[3, 4, 9]), "w")
    (made,) = charts(html)
    most, least, middle, even = (trace["y"] for trace in made["data"])
    assert (most, least) == ([2.5, 1.0, 1.0, 1.0], [1.0, 1.0, 0.5, 0.0])
    assert middle == [1.75, 1.0, 0.75, 0.5]
    assert even == [1, 1]
    text = Text(html).text
    assert "312.5062.5%" in text  # layer 3: expert 1 has 2.50 × the mean, 62.5 % of the selections
    assert "1.0 to 2.5 × the mean" in text
    assert of_popularity(RoutingStatistics(load[2:]), "w") == ""
