"""The benchmark's rules that need no server: rates, slots, abandoned namespaces."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.serving.arms import ARMS, Layout
from bench.serving.conditions import Condition, checked_rate, rate_of
from bench.serving.rates import corrected, rate_by_rule, rounded
from eplb_plugin.bench.engine import Eplb
from network.namespaces import abandoned


def test_a_step_at_the_rules_rate_takes_three_times_as_long() -> None:
    """100 ms and 40 kB a step: the other 200 ms are the time that 40 kB need at 1.6 Mbit/s."""
    rate = rate_by_rule(0.1, 40_000)
    assert rate == pytest.approx(1.6)
    assert 0.1 + 40_000 * 8 / (rate * 1e6) == pytest.approx(0.3)


def test_a_rate_that_breaks_the_rule_is_lowered_until_it_does_not() -> None:
    """A link on which a step waits for half of its bytes only, the rest going beside computation."""
    rate, step = rate_by_rule(0.1, 40_000), 0.1
    for _ in range(3):
        limited = step + 20_000 * 8 / (rate * 1e6)
        rate = corrected(rate, step, limited)
    assert step + 20_000 * 8 / (rate * 1e6) >= 3 * step
    assert corrected(rate, step, 0.31) == rate


@pytest.mark.parametrize(
    ("rate", "nice"), [(16.37, 16.0), (1.99, 1.9), (0.0456, 0.045), (990.0, 990.0), (999.0, 990.0)]
)
def test_rates_are_rounded_downwards(rate: float, nice: float) -> None:
    assert rounded(rate) == pytest.approx(nice)


def test_rates_in_words() -> None:
    words = ["none", "rule", "rule*2", "rule/2", "12.5"]
    assert [rate_of(checked_rate(word), 16.0) for word in words] == [None, 16.0, 32.0, 8.0, 12.5]
    for word in ("fast", "0", "-1", "rule*0", "rule2", ""):
        with pytest.raises(ValueError, match="expected none, rule"):
            checked_rate(word)
    assert Condition(None, 8).name == "no limit, 8 in flight"


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_layouts_and_their_slots(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({name: 32}))
    assert Layout.of("2x2") == Layout(2, 2)
    for text in ("2", "x2", "0x1", "2x", "2x2x2", "-1x2"):
        with pytest.raises(ValueError, match="4x1"):
            Layout.of(text)
    for layout in (Layout(2, 1), Layout(4, 1), Layout(2, 2), Layout(5, 1)):
        redundant = layout.redundant_experts(tmp_path, 0.125)
        assert 4 <= redundant < 4 + layout.ranks
        assert (32 + redundant) % layout.ranks == 0


def test_arms_on_one_server_have_it_in_common(tmp_path: Path) -> None:
    placed = {arm.server for arm in ARMS.values() if arm.placement is not None}
    assert len(placed) == 1
    alone = [arm.server for arm in ARMS.values() if arm.placement is None]
    assert len(set(alone)) == len(alone)
    eplb = Eplb(4, window_size=7, step_interval=9)
    for server in {*placed, *alone}:
        words = server.arguments(eplb, tmp_path / "eplb.yaml")
        assert ("--enable-eplb" in words) == (server.name != "none")
        assert ("--eplb-plugin-config" in words) == (server.settings is not None)
        if "--enable-eplb" in words:  # the same slots in every arm
            assert words[words.index("--eplb-config.num_redundant_experts") + 1] == "4"


def test_only_dead_runs_are_abandoned() -> None:
    gone = max(int(name) for name in os.listdir("/proc") if name.isdigit()) + 100_000
    listing = (
        f"eplb-{os.getpid()}-0 (id: 1)\neplb-{gone}-0 (id: 2)\neplb-{gone}-switch\nother-{gone}-0\n\ncni-1 (id: 3)\n"
    )
    assert abandoned(listing) == [f"eplb-{gone}-0", f"eplb-{gone}-switch"]
