"""What a report is made of: the engine's start before all placements, and files that do not belong together refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplb_plugin import PluginError, RoutingStatistics
from eplb_plugin.observe.report.given import BEFORE, Given, Placed, View, placed
from eplb_plugin.placement import linear_placement


def test_the_engines_start_comes_first(shown: Placed, given: Given) -> None:
    """In as many slots as the placements have; a file of the same name is told apart."""
    assert list(shown.plans) == list(shown.ends) == [BEFORE, "planned <i>"]
    assert shown.newest_name == "window 1"
    start = linear_placement(3, 32, 36, [3, 5, 7])
    assert np.array_equal(shown.plans[BEFORE].placement.phy2log, start.phy2log)
    named = placed(replace(given, placements={BEFORE: start}))
    assert named is not None
    assert list(named.plans) == [BEFORE, f"{BEFORE} (file)"]


def test_without_windows_there_is_nothing_to_show_placements_on(given: Given) -> None:
    assert placed(Given()) is None
    with pytest.raises(PluginError, match="placements alone"):
        placed(Given(placements=given.placements))


def test_wrong_input_is_refused(given: Given) -> None:
    other = RoutingStatistics(np.ones((3, 16)), layer_ids=[3, 5, 7])
    more = {**given.placements, "b": linear_placement(3, 32, 40, [3, 5, 7])}
    cases = {
        "planned <i>: found 32 experts": replace(given, windows={"o": other}),
        "a divisor of 36 slots": replace(given, view=View(nodes=5)),
        "b: found 40 slots": replace(given, placements=more),
    }
    for line, wrong in cases.items():
        with pytest.raises(PluginError) as caught:
            placed(wrong)
        assert line in str(caught.value)
