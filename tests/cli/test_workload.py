"""`eplb-plugin workload make` and `fit`: files that other commands read, and figures that are those of the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin.workloads.imbalance import imbalance_factor
from eplb_plugin.workloads.trace import read_window

Answer = tuple[int, str, str]
SHAPE = ("--layers", 2, "--experts", 32, "--top-k", 4, "--ranks", 8, "--tokens", 1500)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_make_writes_what_it_says(call: Callable[..., Answer], tmp_path: Path, suffix: str) -> None:
    """One file per factor; the printed actual factor is that of the file, near the wanted one."""
    out = tmp_path / f"w{suffix}"
    code, text, err = call("workload", "make", *SHAPE, "--factor", 1, "--factor", 1.7, "--out", out, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(text)
    assert [Path(row["file"]).name for row in answer["windows"]] == [f"w-1{suffix}", f"w-1.7{suffix}"]
    for row in answer["windows"]:
        window = read_window(row["file"])
        found = imbalance_factor(window.load, 8)
        assert row["actual"] == pytest.approx({"mean": found.mean(), "min": found.min(), "max": found.max()})
        assert row["actual"]["mean"] == pytest.approx(row["factor"], rel=0.02)
        assert row["selections_per_rank"]["avg"] == 1500 * 4 / 8
        assert window.num_tokens.tolist() == [1500, 1500]


def test_make_prints_a_table_without_a_file(call: Callable[..., Answer], tmp_path: Path) -> None:
    code, text, err = call("workload", "make", *SHAPE, "--factor", 1.5, "--family", "powerlaw")
    assert (code, err) == (0, "")
    assert "factors that every layer reaches: 1.00 to" in text
    assert "1.50" in text
    assert not list(tmp_path.iterdir())


def test_equal_words_give_equal_files(call: Callable[..., Answer], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.npz", "b.npz")]
    for file in files:
        call("workload", "make", *SHAPE, "--factor", 1.5, "--out", file)
    first, second = (np.load(file)["topk_ids"] for file in files)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--factor", 40), "expected 1.00.."),
        (("--factor", 1, "--family", "cauchy"), "family: found 'cauchy'"),
        (("--factor", 1, "--out", "w.txt"), "--out: found w.txt"),
        (("--factor", 1, "--ranks", 5), "a divisor of 32 experts"),
        (("--factor", 1, "--drift", 2), "router.drift"),
    ],
)
def test_make_refuses(call: Callable[..., Answer], words: tuple[object, ...], line: str) -> None:
    code, out, err = call("workload", "make", *SHAPE, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err


def test_fit_names_the_family_of_made_loads(call: Callable[..., Answer], tmp_path: Path) -> None:
    """What was made log-normal is found to be, with its spread and its factor."""
    call("workload", "make", *SHAPE, "--factor", 1.7, "--out", tmp_path / "w.npz")
    code, text, err = call("workload", "fit", tmp_path / "w.npz", "--ranks", 8, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(text)
    assert answer["best"] == "lognormal"
    assert {row["family"]: row["best_in_layers"] for row in answer["families"]}["lognormal"] == 2
    assert answer["factor"]["mean"] == pytest.approx(1.7, rel=0.02)
    assert "least error: lognormal" in call("workload", "fit", tmp_path / "w.npz")[1]


def test_fit_refuses_empty_layers(call: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text('{"layers": [{"heat": [0, 0]}]}')
    code, out, err = call("workload", "fit", tmp_path / "l.json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "l.json: load: found a layer without any" in err
