"""What is left of a run, whatever happens to it, and what it says of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eplb_plugin.doctor.checks import Result
from eplb_plugin.doctor.environment import environment
from eplb_plugin.doctor.report import Report


def test_a_run_that_dies_leaves_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is complete after every check, and names those that were not reached."""
    file = tmp_path / "report.json"
    report = Report("doctor", environment(), ["one", "two"], file)
    assert json.loads(file.read_text())["not run"] == ["one", "two"]
    report.begin()
    report.add(Result("one", "it holds", "ok", figures={"bytes": 1234567}))
    left = json.loads(file.read_text())
    assert (left["not run"], left["checks"][0]["status"]) == (["two"], "ok")
    report.show()
    said = capsys.readouterr()
    assert "bytes: 1,234,567" in said.out
    assert said.err == "… one (2 to go)\nok one, 0.0 s\n"
