"""Bare loads: layers of one size become statistics, with tokens where the file says how many a row stands for."""

from __future__ import annotations

import pytest

from eplb_plugin import PluginError
from eplb_plugin.workloads.loads import Loads, refuse_sideways, window_of


def test_rows_become_statistics() -> None:
    """Of their decoder layers; tokens are selections over top-k, rounded, where that is known and possible."""
    window, note = window_of("f", Loads([[5, 1, 0], [2, 2, 3]], [3, 7], top_k=2), None)
    assert window.load.tolist() == [[5, 1, 0], [2, 2, 3]]
    assert window.layer_ids.tolist() == [3, 7]
    assert window.num_tokens is not None
    assert window.num_tokens.tolist() == [3, 4]
    assert (window.coactivation, window.sample, note) == (None, None, "")
    for unknown in (0, 4):
        assert window_of("f", Loads([[5, 1, 0]], [3], unknown), None)[0].num_tokens.tolist() == [0]  # type: ignore[union-attr]


def test_layers_of_several_sizes() -> None:
    """Those of the size that is asked for, in their order; without it, or with none such, a line with all sizes."""
    given = Loads([[1, 2, 3], [4, 5], [6, 7, 8], [9]], [0, 1, 2, 3])
    window, note = window_of("f", given, 3)
    assert (window.load.tolist(), window.layer_ids.tolist()) == ([[1, 2, 3], [6, 7, 8]], [0, 2])
    assert note == "; 2 layers of other sizes left out"
    for size in (None, 5):
        with pytest.raises(
            PluginError, match=r"^f: found layers of 3 and of 2 and of 1 experts, .* --num-experts 3 to"
        ):
            window_of("f", given, size)


@pytest.mark.parametrize(
    ("rows", "numbers", "what"), [([[1, -2]], [0], "load"), ([[1, 2], [3, 4]], [2, 1], "layer_ids")]
)
def test_what_statistics_refuse_names_the_file(rows: list[list[float]], numbers: list[int], what: str) -> None:
    """Negative counts and layers out of order."""
    with pytest.raises(PluginError, match=f"^loads.csv: {what}: found"):
        window_of("loads.csv", Loads(rows, numbers), None)


def test_a_table_on_its_side() -> None:
    """More layers than experts is odd, unless the user says so; as many is not."""
    refuse_sideways("f", 8, 8, None)
    refuse_sideways("f", 9, 8, 8)
    with pytest.raises(PluginError, match=r"^f: found 9 rows × 8 columns.*or pass --num-experts 8 if that is so"):
        refuse_sideways("f", 9, 8, None)
