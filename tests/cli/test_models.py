"""Files that name their model: placements carry it on, and files of two models are not mixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin import RoutingStatistics
from eplb_plugin.files import header_of
from eplb_plugin.placement import linear_placement
from eplb_plugin.workloads.routing import ClusteredRouter

Answer = tuple[int, str, str]
CLUSTER = ("--nodes", 2, "--ranks-per-node", 1)
SLOTS = ("--slots-per-rank", 5)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """a.safetensors and b.safetensors, windows of models a and b, and a placement of b, in folders of two machines."""
    for name in ("a", "b"):
        window = RoutingStatistics.from_topk(ClusteredRouter(1, 8, 2).window(50), 8)
        window.save(tmp_path / f"{name}.safetensors", {"model": f"/one/{name}"})
    linear_placement(1, 8, 10).save(tmp_path / "placed.safetensors", {"model": "/other/b/"})
    return tmp_path


def test_a_placement_carries_the_model_of_its_trace(call: Callable[..., Answer], files: Path) -> None:
    words = (
        "plan",
        files / "b.safetensors",
        *CLUSTER,
        *SLOTS,
        "--policy",
        "balanced",
        "--out",
        files / "out.safetensors",
    )
    code, _, problem = call(*words, "--previous", files / "placed.safetensors")
    assert code == 0, problem
    assert header_of(files / "out.safetensors")["model"] == "b"


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "a.safetensors", "b.safetensors", *CLUSTER, *SLOTS, "--out", "out.safetensors"),
        ("plan", "a.safetensors", *CLUSTER, *SLOTS, "--out", "out.safetensors", "--previous", "placed.safetensors"),
        ("replay", "a.safetensors", *CLUSTER, *SLOTS, "--placement", "placed.safetensors"),
        ("report", "--out", "out.html", "--trace", "a.safetensors", *CLUSTER, "--placement", "placed.safetensors"),
    ],
)
def test_files_of_two_models_are_refused(
    call: Callable[..., Answer], files: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    """In one line that names the second file and the first, and nothing is written."""
    monkeypatch.chdir(files)
    code, _, problem = call(*words)
    assert code == 2
    assert "safetensors: model: found b, expected a, as in a.safetensors; fix: pass files of one model" in problem
    assert len(problem.splitlines()) == 1
    assert not [path for path in files.iterdir() if path.name.startswith("out")]
