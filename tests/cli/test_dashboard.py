"""`eplb-plugin dashboard`: the file that Grafana imports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cli_files import Answer, refused


def test_it_is_printed_or_written(call: Callable[..., Answer], tmp_path: Path) -> None:
    """The same bytes; what is written is named, with the way into Grafana."""
    code, printed, err = call("dashboard")
    assert (code, err) == (0, "")
    assert json.loads(printed)["panels"]
    out = tmp_path / "dashboard.json"
    code, said, err = call("dashboard", "--out", out)
    assert (code, err) == (0, "")
    assert out.read_text() == printed
    assert said.startswith(f"{out}: import it in Grafana")


def test_a_place_where_nothing_can_be_written(call: Callable[..., Answer], tmp_path: Path) -> None:
    """One line."""
    refused(call("dashboard", "--out", tmp_path), f"{tmp_path}: cannot be written")
