"""`eplb-plugin compare` on a benchmark in paired rounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eplb_plugin.observe.paired_file import KIND

Answer = tuple[int, str, str]


def record(**changed: Any) -> dict[str, Any]:
    rounds = [
        {"arm": arm, "condition": "16 Mbit/s, 8 in flight", "start": 0, "round": number, "server": "placed 0",
         "figures": {"bytes_per_output_token": value * (1 + 0.01 * (number % 3)), "slots_moved": 5, "kept beside": [1]}}
        for number in range(8)
        for arm, value in (("placed-vanilla", 9000.0), ("placed-affinity", 7000.0 + 10 * number))
    ]  # fmt: skip
    return {
        "kind": KIND,
        "reference": "placed-vanilla",
        "compared": ["bytes_per_output_token"],
        "shown": ["slots_moved"],
        "rounds": rounds,
    } | changed


def write(path: Path, **changed: Any) -> Path:
    path.write_text(json.dumps(record(**changed)))
    return path


def test_table_and_json(call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    file = write(tmp_path / "results.json")
    code, out, err = call("compare", file)
    assert (code, err) == (0, "")
    for part in ("16 Mbit/s, 8 in flight", "-21.8%", "8 rounds", "better", "1 of 1 comparisons decided"):
        assert part in out
    answer = json.loads(call("compare", file, "--json")[1])
    assert [(cell["figure"], cell["verdict"]) for cell in answer["cells"]] == [
        ("bytes_per_output_token", "reference"), ("bytes_per_output_token", "better"),
        ("slots_moved", "reference"), ("slots_moved", "not compared"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"rounds": []}, "rounds"),
        ({"rounds": [{"arm": "a"}]}, "rounds.0"),
        ({"compared": ["kept beside"]}, "found"),
        ({"reference": "nobody"}, "expected one of placed-vanilla, placed-affinity"),
    ],
)
def test_bad_input_is_one_line(call: Callable[..., Answer], tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    code, out, err = call("compare", write(tmp_path / "results.json", **changed))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err
