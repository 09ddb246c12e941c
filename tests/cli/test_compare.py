"""`eplb-plugin compare`: the table, what it says about noise, and one line for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from generators import sglang_result, vllm_result

Answer = tuple[int, str, str]


def fill(folder: Path, qps: list[float]) -> Path:
    folder.mkdir()
    for number, one in enumerate(qps):
        (folder / f"{number}.json").write_text(json.dumps(vllm_result(one)))
    return folder


def test_table_and_json(call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    slow, fast = fill(tmp_path / "slow", [4, 4.1, 4.2, 3.9, 3.8]), fill(tmp_path / "fast", [8, 8.2, 8.1, 7.9, 7.8])
    code, out, err = call("compare", slow, f"new={fast}")
    assert (code, err) == (0, "")
    for part in ("slow", "new", "+100.0%", "better", "4 of 4 comparisons decided", "P50 TTFT ms", "P90 TPOT ms"):
        assert part in out
    answer = json.loads(call("compare", slow, f"new={fast}", "--json")[1])
    assert {cell["verdict"] for cell in answer["cells"] if cell["arm"] == "new"} == {"better"}


def test_few_runs_say_how_many_are_needed(call: Callable[..., Answer], tmp_path: Path) -> None:
    code, out, _ = call("compare", fill(tmp_path / "a", [1, 2, 3]), fill(tmp_path / "b", [7, 8, 9]))
    assert code == 0
    assert "0 of 4 comparisons decided" in out
    assert "5 runs could" in " ".join(out.split())


def test_sglang_files_are_arms(call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name, start in (("a", 2.0), ("b", 2.05)):
        lines = [json.dumps(sglang_result(start + 0.1 * number)) for number in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    code, out, _ = call("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert code == 0
    assert "not told apart" in out


@pytest.mark.parametrize(
    ("second", "line"), [("missing", "cannot be read"), ("a", "two arms named a"), ("foreign.json", "another kind")]
)
def test_bad_input_is_one_line(call: Callable[..., Answer], tmp_path: Path, second: str, line: str) -> None:
    fill(tmp_path / "a", [1, 2, 3])
    (tmp_path / "foreign.json").write_text("{}")
    code, out, err = call("compare", tmp_path / "a", tmp_path / second)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err
