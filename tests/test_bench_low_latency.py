"""The low-latency benchmark runs on the reference, says so, and its figures say what they are to say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.low_latency import run as bench
from bench.low_latency.case import Case, routed, selections

SMALL = ["--ranks", "2", "--experts", "8", "--top-k", "2", "--hidden", "128", "--inter", "128", "--tokens", "4",
         "--repeats", "1"]  # fmt: skip
METHODS = ["unsplit", "stock overlap-2", "overlap-1", "overlap-2", "overlap-3", "overlap-4"]


def test_the_script_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "bench.json"
    words = ["--imbalance-factors", "1", "1.5", "--rounds", "2", "--backend", "reference"]
    monkeypatch.setattr("sys.argv", ["bench_low_latency", *SMALL, *words, "--out", str(out)])
    assert bench.main() == 0
    written, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert [entry["target"] for entry in written["results"]] == [1.0, 1.5]
    for entry in written["results"]:
        assert sum(entry["selections"]) == sum(entry["sent"]) == 2 * 4 * 2
        assert entry["actual"] == max(entry["selections"]) / np.mean(entry["selections"])
        assert len(entry["ranks"]) == 2
        for rank in entry["ranks"]:
            assert list(rank["layers"]) == METHODS
            assert rank["same bits"] == dict.fromkeys(METHODS[1:], True)
            assert min([*rank["layers"].values(), *rank["parts"].values()]) > 0.0
    assert "ran on the CPU reference of the protocol" in printed
    assert "its times say nothing of a GPU" in printed
    for title in (
        "1. Selections",
        "2. Dispatch and combine",
        "3. Dispatch, combine",
        "4. SEND and RECV",
        "5. The whole",
    ):
        assert title in printed
    assert "Every schedule gave the bits of the unsplit layer on every rank." in printed
    broken = json.loads(out.read_text())
    broken["results"][0]["ranks"][1]["same bits"]["overlap-3"] = False
    case = Case(**broken["case"])
    assert bench.report(case, broken["results"], bench.options()) == 1
    assert "Not the bits of the unsplit layer: overlap-3" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["lognormal", "gamma", "powerlaw"])
def test_loads_have_the_factor_or_the_largest_there_is(family: str) -> None:
    case = Case(
        real=False, ranks=4, tokens=256, hidden=128, inter=128, experts=64, top_k=4, distribution=family,
        factors=(), rounds=1, repeats=1, seed=0,
    )  # fmt: skip
    actual = []
    for factor in (1.0, 1.5, 2.0, 100.0):
        served = selections(case, routed(case, factor))
        assert served.sum() == 4 * 256 * 4
        actual.append(served.max() / served.mean())
    assert actual[:3] == pytest.approx([1.0, 1.5, 2.0], rel=0.05)
    assert 2.0 < actual[3] < 4.0  # all on one rank is not possible where a token selects four experts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experts", "12", "--rounds", "4"], "--experts: found 12, expected a multiple of 8 (2 ranks × 4 rounds)"),
        (["--backend", "deep_ep"], "--backend deep_ep: found no such packages, or no GPU"),
    ],
)
def test_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    monkeypatch.setattr("sys.argv", ["bench_low_latency", "--ranks", "2", *words])
    with pytest.raises(SystemExit, match="bench_low_latency: ") as error:
        bench.main()
    assert message in str(error.value)
