"""What is left of a run, whatever happens to it, and what it says of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eplb_plugin.doctor import checks
from eplb_plugin.doctor.checks import Check, Result, run_checks
from eplb_plugin.doctor.environment import environment
from eplb_plugin.doctor.report import Report
from eplb_plugin.doctor.site import Skipped


def raise_deep() -> None:
    raise ValueError("of two\nlines")


def run(where: str) -> dict[str, int]:
    if where == "skips":
        raise Skipped("no such thing here")
    if where == "fails":
        raise_deep()
    return {"bytes": 1234567}


CHECK = Check("one", "it holds", run)


def test_whatever_a_check_raises_is_its_result() -> None:
    """In one line that says where; the traceback is kept for whoever mends it."""
    (result,) = run_checks([CHECK], "fails")
    assert result.status == "failed"
    assert result.detail.startswith("ValueError at test_report.py:")
    assert result.detail.endswith(": of two lines")
    assert "raise_deep()" in result.trace
    assert next(run_checks([CHECK], "skips")).detail == "no such thing here"
    assert next(run_checks([CHECK], "works")).figures == {"bytes": 1234567}


def test_after_ten_minutes_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is skipped, with the reason."""
    monkeypatch.setattr(checks, "MOST_SECONDS", -1.0)
    assert [(one.status, one.detail) for one in run_checks([CHECK, CHECK], "works")] == [
        ("skipped", "-1 s were over")
    ] * 2


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


def test_it_tells_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the libraries that matter, and none that could be a password."""
    for name in ("NCCL_DEBUG", "NCCL_API_KEY", "EPLB_PLUGIN_TOKEN", "HF_TOKEN", "HOME"):
        monkeypatch.setenv(name, f"value of {name}")
    found = environment()["settings"]
    assert found["NCCL_DEBUG"] == "value of NCCL_DEBUG"
    assert not {"NCCL_API_KEY", "EPLB_PLUGIN_TOKEN", "HF_TOKEN", "HOME"} & set(found)
