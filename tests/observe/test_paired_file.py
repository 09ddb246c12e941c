"""The file of a benchmark in paired rounds: what is read of it, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.paired_file import KIND, is_paired, read_paired


def record(**changed: Any) -> dict[str, Any]:
    rounds = [
        {"arm": arm, "condition": "8 in flight", "start": 0, "round": number, "server": "s",
         "figures": {"qps": value + number, "moved": 5, "note": ["kept beside"]}}
        for number in range(4) for arm, value in (("vanilla", 10.0), ("plugin", 20.0))
    ]  # fmt: skip
    return {"kind": KIND, "reference": "vanilla", "compared": ["qps"], "shown": ["moved"], "rounds": rounds} | changed


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_rounds_are_read(tmp_path: Path) -> None:
    """Of their figures those that are compared or shown; others may be anything."""
    read = read_paired(written(tmp_path / "r.json", record()))
    assert (read.reference, read.shown, len(read.rounds)) == ("vanilla", ["moved"], 8)
    first = read.rounds[1]
    assert (first.arm, first.condition, first.start, first.round, first.server) == ("plugin", "8 in flight", 0, 0, "s")
    assert first.figures == {"qps": 20.0, "moved": 5.0}
    verdicts = {(cell.arm, cell.figure): cell.verdict for cell in read.compare().cells}
    assert verdicts["plugin", "qps"] == "better"
    assert verdicts["plugin", "moved"] == "not compared"


@pytest.mark.parametrize(
    ("content", "paired"),
    [(record(), True), (record(kind="other"), False), ([KIND], False), ("{", False), ("[" * 100_000, False)],
    ids=["ours", "another kind", "a list", "broken", "deep"],
)
def test_which_files_are_of_this_kind(tmp_path: Path, content: Any, paired: bool) -> None:
    """False for whatever cannot be read, also where there is no file."""
    assert is_paired(written(tmp_path / "r.json", content)) is paired
    assert not is_paired(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"rounds": []}, "found rounds: "),
        ({"rounds": [{"arm": "a"}]}, "found rounds.0."),
        ({"compared": []}, "found compared: "),
        ({"compared": ["note"]}, "found a figure: "),
        ({"rounds": [record()["rounds"][0] | {"figures": {"qps": -1.0}}]}, "found a figure: "),
        ({"rounds": [record()["rounds"][0] | {"figures": {"qps": True}}]}, "found a figure: "),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    """In one line with the file and the place in it."""
    path = written(tmp_path / "r.json", record(**changed))
    with pytest.raises(PluginError) as caught:
        read_paired(path)
    assert str(caught.value).startswith(f"{path}: {line}")
    assert str(caught.value).endswith(f"expected {KIND}; fix: run the benchmark again")
    assert "\n" not in str(caught.value)
