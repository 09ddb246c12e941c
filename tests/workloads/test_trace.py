"""A trace's shape: said by the user or the file, shown, and refused where it is implausible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.workloads.trace import TOKENS_FIRST, Shape, read_trace

IDS = np.argsort(np.random.default_rng(0).random((3, 50, 6)), axis=2)[:, :, :2]  # experts 0 to 5 of 8


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    np.savez(tmp_path / "trace.npz", topk_ids=IDS)
    return tmp_path / "trace.npz"


def test_cold_experts_are_no_guess(trace: Path) -> None:
    """The highest id + 1 leaves the last experts in no slot: it is called a guess, and what the user says counts."""
    guess, known = read_trace(trace, Shape()), read_trace(trace, Shape(num_experts=8))
    assert guess.window.num_experts == 6
    assert guess.guessed
    assert "--num-experts" in guess.understood
    assert known.window.num_experts == 8
    assert not known.guessed
    assert known.understood == f"{trace}: 3 layers (0 to 2) × 50 tokens, top-2, of 8 experts"


def test_vllms_order_of_dimensions(tmp_path: Path) -> None:
    """[tokens, layers, k] is refused as 50 layers of 3 tokens, and read where it is named."""
    path = tmp_path / "trace.npz"
    np.savez(path, topk_ids=IDS.transpose(1, 0, 2), num_experts=8)
    with pytest.raises(PluginError, match=r"more layers than tokens.*--layout tokens-first"):
        read_trace(path, Shape())
    np.testing.assert_array_equal(read_trace(path, Shape(layout=TOKENS_FIRST)).window.sample, IDS)
    assert read_trace(path, Shape(layout="layers-first")).window.num_layers == 50
    with pytest.raises(PluginError, match="layout: found 'k-first'"):
        read_trace(path, Shape(layout="k-first"))


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (Shape(num_experts=5), "topk_ids: found ids 0..5, expected -1..4"),
        (Shape(num_experts=8, top_k=4), "experts per token: found 2, expected 4"),
        (Shape(num_experts=8, num_layers=2), "last layer: found 2, expected < 2"),
    ],
)
def test_ids_that_contradict_the_model_are_refused(trace: Path, shape: Shape, found: str) -> None:
    with pytest.raises(PluginError, match=f"^{trace}: {found}"):
        read_trace(trace, shape)
