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


def test_arrays_without_names(tmp_path: Path) -> None:
    """An .npy is loads if it has two dimensions, and ids if it has three; its shape is refused otherwise."""
    np.save(tmp_path / "ids.npy", IDS)
    np.testing.assert_array_equal(read_trace(tmp_path / "ids.npy", Shape(num_experts=8)).window.sample, IDS)
    np.save(tmp_path / "loads.npy", np.arange(12).reshape(3, 4))
    reading = read_trace(tmp_path / "loads.npy", Shape())
    np.testing.assert_array_equal(reading.window.load, np.arange(12).reshape(3, 4))
    size = "3 layers (0 to 2), loads only, of 4 experts"
    assert reading.understood == f"{tmp_path / 'loads.npy'}: an .npy array, {size}"
    np.save(tmp_path / "row.npy", np.arange(3))
    with pytest.raises(PluginError, match=r"row\.npy: found shape \(3,\) int64, expected loads"):
        read_trace(tmp_path / "row.npy", Shape())


def test_fused_shared_experts_are_left_out(tmp_path: Path) -> None:
    """A column of ids beyond the routed experts is no router's choice: with the number of experts, and without."""
    ids = np.argsort(np.random.default_rng(0).random((3, 90, 8)), axis=2)[:, :, :3]
    path = tmp_path / "trace.npz"
    np.savez(path, topk_ids=np.concatenate([ids, np.full((3, 90, 1), 8)], axis=2))
    for shape in (Shape(), Shape(num_experts=8, top_k=3)):
        reading = read_trace(path, shape)
        np.testing.assert_array_equal(reading.window.sample, ids)
        assert (reading.window.num_experts, reading.guessed) == (8, False)
        assert "1 of the columns left out: fused shared experts (ids from 8)" in reading.understood
    two = np.random.default_rng(1).integers(8, 10, (3, 90, 1))  # SGLang draws among several
    np.savez(path, topk_ids=np.concatenate([ids, two], axis=2))
    np.testing.assert_array_equal(read_trace(path, Shape(num_experts=8)).window.sample, ids)
    np.savez(path, topk_ids=np.concatenate([ids, np.where(two == 9, 7, 8)], axis=2))
    with pytest.raises(PluginError, match=r"topk_ids: found ids 0\.\.8, expected -1\.\.7"):  # beyond, but not all of it
        read_trace(path, Shape(num_experts=8))


def test_a_popular_expert_is_no_shared_one(tmp_path: Path) -> None:
    """A layer whose tokens all choose the highest expert last, beside one that does not."""
    ids = np.stack([np.tile([0, 5], (90, 1)), np.tile([5, 1], (90, 1))])
    np.savez(tmp_path / "trace.npz", topk_ids=ids)
    assert read_trace(tmp_path / "trace.npz", Shape()).window.load[:, 5].tolist() == [90, 90]
    np.savez(tmp_path / "trace.npz", topk_ids=np.stack([np.tile([0, 5], (90, 1)), np.tile([6, 5], (90, 1))]))
    assert read_trace(tmp_path / "trace.npz", Shape()).window.load[:, 5].tolist() == [90, 90]
