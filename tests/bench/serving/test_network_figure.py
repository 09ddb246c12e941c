"""The picture of arms on nodes with limited links: every figure that was compared, of every arm, in every condition."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.serving.results import Results
from eplb_plugin.observe.paired import Round, compare_paired
from lab.figures.network import FIGURES, drawn, main

CONDITIONS = ("no limit, 16 in flight", "4 Mbit/s, 16 in flight", "8 Mbit/s, 16 in flight")


def measured() -> list[Round]:
    noise = np.random.default_rng(0)
    return [
        Round(arm, condition, 0, number, "one", {name: scale * noise.uniform(0.99, 1.01) for name in FIGURES})
        for arm, scale in (("vanilla", 1.0), ("affinity", 0.7), ("same", 1.0))
        for condition in CONDITIONS
        for number in range(6)
    ]


def test_every_difference_is_drawn() -> None:
    """A dot and an interval each; a dot is filled where the difference is told apart from noise."""
    compared = compare_paired(measured())
    root = ElementTree.fromstring(drawn(compared.cells, compared.reference))
    name = "{http://www.w3.org/2000/svg}"
    dots = root.findall(f"{name}circle")
    assert len(dots) == 2 * len(CONDITIONS) * len(FIGURES)
    filled = [dot for dot in dots if dot.get("fill") != "white"]
    decided = [cell for cell in compared.cells if cell.verdict in ("better", "worse")]
    assert len(filled) == len(decided) >= len(CONDITIONS) * len(FIGURES)
    lines = [line for line in root.findall(f"{name}line") if line.get("stroke-width") == "2"]
    assert len(lines) == len(dots)
    panels = [(one.get("x"), one.get("y")) for one in root.findall(f"{name}rect") if one.get("fill") == "none"]
    assert len(set(panels)) == len(CONDITIONS)
    words = {text.text for text in root.findall(f"{name}text")}
    assert {*FIGURES.values(), *CONDITIONS, "● affinity", "● same"} <= words


def test_from_a_results_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command draws what the benchmark wrote."""
    results = Results(tmp_path / "results.json", {}, "vanilla")
    for one in measured():
        results.add(**asdict(one))
    monkeypatch.setattr(sys, "argv", ["draw_network", str(results.path), str(tmp_path / "drawn.svg")])
    main()
    assert (tmp_path / "drawn.svg").read_text() == drawn(compare_paired(measured()).cells, "vanilla")
