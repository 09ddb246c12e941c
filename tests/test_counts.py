"""Counts: what is a count, what is none, and counting against a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError
from eplb_plugin.counts import MOST_STEPS, checked_counts, checked_layer_ids, count_rows, count_steps, thinned
from strategies import QUICK, token_rows


@pytest.mark.parametrize("counts", [[[0, 5]], [[0.5, 1e30]], np.zeros((0, 3)), np.array([[7]], np.uint16)])
def test_counts_stay_as_they_are(counts: Any) -> None:
    """Integers or floats, none too."""
    assert np.array_equal(checked_counts("load", counts), counts)
    assert checked_counts("load", counts).dtype == np.asarray(counts).dtype


def test_what_a_decayed_window_leaves_is_none() -> None:
    """The least count is one; what is below becomes 0 of the same type, and the given array stays."""
    given = np.array([1e-31, 1e-30, 2.0], np.float32)
    assert checked_counts("load", given).tolist() == [0.0, np.float32(1e-30), 2.0]
    assert checked_counts("load", given).dtype == np.float32
    assert given[0] > 0


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ([[-1]], "a negative"), ([[np.nan]], "a negative, infinite or unknown"), ([[np.inf]], "a negative, infinite"),
        ([[2e30]], "a negative, infinite"), ([["3"]], "dtype <U1"), ([[True]], "dtype bool"),
    ],
)  # fmt: skip
def test_other_values_are_refused(counts: Any, found: str) -> None:
    """In one line that names what they are of."""
    with pytest.raises(PluginError, match=f"^pairs: found {found}.*; fix: (pass numbers|correct these values)$"):
        checked_counts("pairs", counts)


def test_layers_are_numbered() -> None:
    """0 to L - 1 where nothing is said, else the numbers given, as int32; unsigned ones are checked as well."""
    assert checked_layer_ids(None, 3).tolist() == [0, 1, 2]
    assert checked_layer_ids(np.array([3, 60], np.uint8), 2).tolist() == [3, 60]
    assert checked_layer_ids([1], 1).dtype == np.int32


@pytest.mark.parametrize("ids", [[0], [1, 1], [2, 1], [-1, 0], [0.0, 1.0], np.array([5, 3], np.uint8), [[0, 1]]])
def test_layers_that_are_no_numbers_in_order_are_refused(ids: Any) -> None:
    """One line with what was found."""
    with pytest.raises(PluginError, match=r"^layer_ids: found .*, expected 2 increasing decoder-layer numbers"):
        checked_layer_ids(ids, 2)


@QUICK
@given(st.data())
def test_rows_and_steps_are_counted_as_by_hand(data: st.DataObject) -> None:
    """Loads, pairs and the loads of single steps, of rows that are partly filled."""
    rows = data.draw(token_rows(2, 6))
    steps = np.array(data.draw(st.lists(st.integers(3, 6), min_size=rows.shape[1], max_size=rows.shape[1])), np.int64)
    load, pairs = np.zeros((2, 6), int), np.zeros((2, 6, 6), int)
    by_step = {step: np.zeros((2, 6), int) for step in sorted(set(steps.tolist()))}
    for layer in range(2):
        for token, step in enumerate(steps.tolist()):
            chosen = [expert for expert in rows[layer, token].tolist() if expert >= 0]
            for expert in chosen:
                load[layer, expert] += 1
                by_step[step][layer, expert] += 1
                for other in chosen:
                    pairs[layer, expert, other] += 1
    found_load, found_pairs = count_rows(rows, 6)
    assert np.array_equal(found_load, load)
    assert np.array_equal(found_pairs, pairs)
    assert np.array_equal(count_steps(rows, steps, 6), np.array(list(by_step.values())).reshape(-1, 2, 6))


def test_many_steps_are_thinned_evenly() -> None:
    """The first and the last stay, those between are as far apart as can be; few stay as they are."""
    kept = thinned(np.arange(1000))
    assert (len(kept), kept[0], kept[-1]) == (MOST_STEPS, 0, 999)
    assert set(np.diff(kept).tolist()) <= {15, 16}
    assert thinned(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert thinned(np.arange(5), most=3).tolist() == [0, 2, 4]


@pytest.mark.parametrize("steps", [np.arange(3), np.arange(4.0), np.zeros((4, 1), int)])
def test_steps_that_do_not_fit_the_tokens_are_refused(steps: Any) -> None:
    """One integer per token."""
    with pytest.raises(PluginError, match=r"^steps: found shape .*, expected integers \[4\]"):
        count_steps(np.zeros((1, 4, 1), int), steps, 3)
