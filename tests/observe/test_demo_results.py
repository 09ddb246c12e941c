"""The demo's results and its table: read back, told from other files, the same rows for terminal and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.demo_results import DemoResults, is_demo, read_demo

FILE = Path(__file__).parent / "data" / "demo.json"


def test_the_table() -> None:
    """One cell an arm; no moves without EPLB; the first arm is the reference; the tail is against no EPLB."""
    demo = read_demo(FILE)
    counted, measured = (dict(part) for part in demo.table())
    assert counted["cross-node copies / token (counted)"] == ["0.950", "0.900", "0.902", "0.556"]
    assert counted["expert slots moved"] == ["-", "429", "429", "62"]
    assert counted["output equal to no EPLB"] == ["reference", *["yes, 16 of 16 prompts"] * 3]
    assert measured["TTFT P50 / P90 / P95 / P99, ms"][0] == "90 / 144 / 180 / 315"
    assert measured["ITL P99 with rebalances, times that without"][0] == "1.00"
    assert measured["output tokens / s"][0] == "300"


def test_a_difference_is_told(tmp_path: Path) -> None:
    """Also one that no number is: a token that another arm did not choose."""
    made = json.loads(FILE.read_text())
    made["arms"][3]["largest_logprob_difference"] = float("inf")
    (tmp_path / "r.json").write_text(json.dumps(made))
    counted, _ = read_demo(tmp_path / "r.json").table()
    assert dict(counted)["output equal to no EPLB"][3] == "NO"
    alone = DemoResults.model_validate({**made, "arms": made["arms"][3:]})
    assert "ITL P99 with rebalances, times that without" not in dict(alone.table()[1])


def test_other_files(tmp_path: Path) -> None:
    assert is_demo(FILE)
    for text in ("{", "[]", '{"kind": "eplb_plugin paired rounds 1"}'):
        (tmp_path / "r.json").write_text(text)
        assert not is_demo(tmp_path / "r.json")
    assert not is_demo(tmp_path / "none.json")
    with pytest.raises(PluginError, match="found kind: "):
        read_demo(tmp_path / "r.json")
