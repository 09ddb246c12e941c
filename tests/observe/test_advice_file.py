"""What `advise --json` printed, read back, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.advice import Survey
from eplb_plugin.observe.advice_file import read_advice
from eplb_plugin.observe.recommendation import recommend


def test_advice_is_read_back(surveyed: Survey, tmp_path: Path) -> None:
    """The best is found among what was tried, with its figures; an infinite break-even is null in JSON."""
    chosen = recommend(surveyed, ["hash"])
    assert chosen.best is not None
    text = json.dumps({
        "recording": "w", "enable": chosen.enable, "reasons": chosen.reasons, "best": asdict(chosen.best.candidate),
        "settings": None, **asdict(surveyed),
    })  # fmt: skip
    (tmp_path / "a.json").write_text(text)
    found = read_advice(tmp_path / "a.json")
    assert found.outcome is not None
    assert found.outcome.work_saved == tuple(chosen.best.work_saved)
    assert found.outcome.candidate.policy == chosen.best.candidate.policy
    nothing = json.dumps({**json.loads(text), "best": None})
    (tmp_path / "b.json").write_text(nothing)
    assert read_advice(tmp_path / "b.json").outcome is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    for text, words in {"{": "the file: Invalid JSON", "{}": "recording: Field required"}.items():
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(PluginError, match=words) as error:
            read_advice(tmp_path / "a.json")
        assert "advise --json" in str(error.value)
