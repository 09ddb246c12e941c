"""Both engines by name, and what an arm adds to a server's arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Eplb, Load
from eplb_plugin.bench.engines import ENGINES, LAYOUTS

EPLB = Eplb(redundant_experts=4, window_size=8, step_interval=16)


@pytest.mark.parametrize("name", ENGINES)
def test_arms_differ_in_eplb_alone(name: str) -> None:
    """`none` is a beginning of every other arm, and the plugin's arm is vanilla's with the plugin's words behind."""
    engine, layout = ENGINES[name], LAYOUTS[name]
    words = {arm: engine.arm_arguments(arm, layout, EPLB, Path("c.yaml")) for arm in engine.arms}
    none = words["none"]
    assert all(found[: len(none)] == none for found in words.values())
    assert words["affinity"] == words["vanilla"] + engine.plugin_arguments(Path("c.yaml"))
    assert words["vanilla"] == none + engine.eplb_arguments(EPLB)


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_not_given_is_the_engines_own(name: str) -> None:
    words = ENGINES[name].eplb_arguments(Eplb(redundant_experts=4))
    assert not [word for word in words if "window" in word or "buffer" in word or "interval" in word or "iter" in word]


@pytest.mark.parametrize("name", ENGINES)
def test_loads_say_all_that_was_asked_for(name: str) -> None:
    """Random prompts by their lengths, a dataset by its file; requests, clients, seed and the result's place always."""
    engine = ENGINES[name]
    random = engine.bench(Path("m"), "http://h:1", Load(12, 3, 70, 40, seed=5), Path("out/run.json"))
    given = engine.bench(Path("m"), "http://h:1", Load(12, 3, dataset=Path("s.json")), Path("out/run.json"))
    for word in ("http://h:1", "m", "12", "3"):
        assert word in random
        assert word in given
    assert {"70", "40", "5"} <= set(random)
    assert "s.json" in given
    assert any("run.json" in word for word in random)
