"""Rebalances from a server's log: what the plugin's own class writes is read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.rebalance_log import read_rebalances
from eplb_plugin.runtime.outcome import Assessment

MADE = Assessment(
    balancedness=(0.712, 0.991), copies=(2.731, 2.104), crossing=(0.5, 0.4), moved_slots=9120, slots=16704,
    skipped_layers=2, seconds=0.1, tokens=1000,
)  # fmt: skip


def test_lines_are_read_back(tmp_path: Path) -> None:
    """Behind any logger's prefix, by model, in order; on one node there are no copies; other lines are passed over."""
    lines = [
        f"(Worker pid=7) INFO 12-01 11:19:43 [proposal.py:46] rebalance 1 of /m/a b: {MADE}",
        "rebalance 2 of /m/a b refused, the old placement stays: planned balancedness was too low",
        f"[2026-01-01] INFO rebalance 1 of draft: {replace(MADE, copies=None, skipped_layers=0)}",
        f"rebalance 3 of /m/a b: {replace(MADE, moved_slots=0)}",
    ]
    (tmp_path / "server.log").write_text("\n".join(lines))
    found = read_rebalances(tmp_path / "server.log")
    assert list(found) == ["/m/a b", "draft"]
    first, last = found["/m/a b"]
    assert first == (1, (0.712, 0.991), (2.731, 2.104), 9120, 16704)
    assert (last.number, last.moved_slots) == (3, 0)
    assert found["draft"][0].copies is None


def test_a_log_without_rebalances_is_refused(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("started\n")
    with pytest.raises(PluginError, match="found no rebalance"):
        read_rebalances(tmp_path / "server.log")
    with pytest.raises(PluginError, match="cannot be read"):
        read_rebalances(tmp_path / "none.log")
