from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError, RoutingStatistics
from eplb_plugin.counts import MOST_STEPS
from eplb_plugin.statistics import MOST_PARTS
from strategies import QUICK, token_rows


@QUICK
@given(st.data())
def test_from_topk_counts_exactly(data):
    experts = data.draw(st.integers(1, 8))
    rows = data.draw(token_rows(2, experts))
    statistics = RoutingStatistics.from_topk(rows, experts)
    for layer, tokens in enumerate(rows):
        load, pairs = np.zeros(experts, int), np.zeros((experts, experts), int)
        for row in tokens.tolist():
            chosen = [e for e in row if e >= 0]
            assert len(set(chosen)) == len(chosen)
            for e in chosen:
                load[e] += 1
                for other in chosen:
                    pairs[e, other] += 1
        assert np.array_equal(statistics.load[layer], load)
        assert np.array_equal(statistics.coactivation[layer], pairs)
        assert statistics.num_tokens[layer] == (tokens >= 0).any(axis=1).sum()
    assert np.array_equal(statistics.sample, rows)


@QUICK
@given(st.data())
def test_two_windows_merge_into_one(data):
    first, second = (data.draw(token_rows(2, 5)) for _ in range(2))
    if first.shape[2] != second.shape[2]:
        return
    merged = RoutingStatistics.from_topk(first, 5).merge(RoutingStatistics.from_topk(second, 5))
    whole = RoutingStatistics.from_topk(np.concatenate([first, second], axis=1), 5)
    for name in ("load", "coactivation", "sample", "num_tokens", "layer_ids"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name


def test_parts_are_the_windows_that_were_merged():
    windows = [RoutingStatistics(np.full((1, 2), number)) for number in range(1, 4)]
    merged = windows[0].merge(windows[1]).merge(windows[2])
    assert merged.parts.tolist() == [[[1, 1]], [[2, 2]], [[3, 3]]]
    assert windows[0].parts is None
    assert merged.decay(0.5).parts.tolist() == [[[0.5, 0.5]], [[1.0, 1.0]], [[1.5, 1.5]]]
    many = windows[0]
    for _ in range(200):
        many = many.merge(windows[1])
    assert len(many.parts) <= MOST_PARTS
    assert many.parts.sum(0).tolist() == many.load.tolist() == [[401, 401]]


def test_steps_are_loads_of_single_steps(tmp_path):
    ids, steps = np.array([[[0, 1], [1, 2], [0, -1], [2, 0]]]), np.array([7, 7, 9, 9])
    window = RoutingStatistics.from_topk(ids, 3, steps=steps)
    assert window.steps.tolist() == [[[1, 2, 1]], [[2, 0, 1]]]
    assert np.array_equal(window.merge(window).steps, np.concatenate([window.steps] * 2))
    assert np.array_equal(window.decay(0.5).steps, window.steps)
    window.save(tmp_path / "w.safetensors")
    assert np.array_equal(RoutingStatistics.read(tmp_path / "w.safetensors").steps, window.steps)
    many = RoutingStatistics.from_topk(np.tile([0, -1], (1, 1000, 1)), 3, steps=np.arange(1000))
    assert len(many.steps) == len(many.merge(window).steps) == MOST_STEPS
    assert RoutingStatistics.from_topk(ids, 3).steps is None


@pytest.mark.parametrize("steps", [np.arange(3), np.arange(4.0), np.zeros((4, 1), int)])
def test_steps_that_do_not_fit_the_tokens_are_refused(steps):
    with pytest.raises(PluginError, match="steps"):
        RoutingStatistics.from_topk(np.zeros((1, 4, 1), int), 3, steps=steps)


@pytest.mark.parametrize("parts", [np.ones((1, 3)), np.ones((2, 1, 2)), np.ones((2, 1, 3)), np.full((1, 1, 3), -1.0)])
def test_parts_that_are_not_the_loads_are_refused(parts):
    with pytest.raises(PluginError, match="parts"):
        RoutingStatistics(np.ones((1, 3)), parts=parts)


def test_parts_of_another_sum_name_the_expert():
    """Where the windows do not add up, the message says for which expert, and to what."""
    with pytest.raises(PluginError, match="expert 2 in layer 7: found a sum of 3, expected 4 as in the load"):
        RoutingStatistics([[2, 2, 4]], layer_ids=[7], parts=[[[1, 1, 1]], [[1, 1, 2]]])


def test_merge_refuses_another_model():
    with pytest.raises(PluginError, match="merge"):
        RoutingStatistics(np.ones((1, 4))).merge(RoutingStatistics(np.ones((1, 5))))
    with pytest.raises(PluginError, match="merge"):
        RoutingStatistics(np.ones((1, 4))).merge(RoutingStatistics(np.ones((1, 4)), layer_ids=[3]))


def test_decay():
    statistics = RoutingStatistics.from_topk(np.array([[[0, 1], [0, 2]]]), 3).decay(0.5)
    assert statistics.load.tolist() == [[1.0, 0.5, 0.5]]
    assert statistics.coactivation[0, 0].tolist() == [1.0, 0.5, 0.5]
    assert statistics.num_tokens.tolist() == [1]
    with pytest.raises(PluginError, match="decay"):
        statistics.decay(1.5)


def test_save_and_read(tmp_path):
    full = RoutingStatistics.from_topk(np.array([[[0, 1], [2, -1]]]), 3, layer_ids=[7])
    full = full.merge(RoutingStatistics.from_topk(np.array([[[1, 1]]]), 3, layer_ids=[7]))
    assert full.left_out.tolist() == [1]
    full.save(tmp_path / "window.safetensors", {"model": "tiny"})
    again = RoutingStatistics.read(tmp_path / "window.safetensors")
    for name in ("load", "coactivation", "sample", "num_tokens", "layer_ids", "parts", "left_out"):
        assert np.array_equal(getattr(again, name), getattr(full, name)), name
    RoutingStatistics(np.ones((1, 4))).save(tmp_path / "load.safetensors")
    assert RoutingStatistics.read(tmp_path / "load.safetensors").sample is None


def test_the_reader_still_answers_to_its_old_name(tmp_path):
    """`load` reads a file on the class, and is the array on what it read."""
    RoutingStatistics(np.ones((1, 4))).save(tmp_path / "load.safetensors")
    assert RoutingStatistics.load(tmp_path / "load.safetensors").load.tolist() == [[1, 1, 1, 1]]


def test_load_of_a_foreign_file_is_one_line(tmp_path):
    (tmp_path / "bad").write_bytes(b"not a file of ours")
    for name in ("bad", "missing"):
        with pytest.raises(PluginError) as caught:
            RoutingStatistics.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"load": np.ones(4)}, "load"),
        ({"load": np.ones((0, 4))}, "load"),
        ({"load": np.full((1, 2), -1)}, "load"),
        ({"load": np.full((1, 2), np.nan)}, "load"),
        ({"load": np.array([["a", "b"]])}, "load"),
        ({"coactivation": np.ones((1, 2, 3))}, "coactivation"),
        ({"coactivation": np.array([[[0, 1], [2, 0]]])}, "asymmetric"),
        ({"sample": np.zeros((1, 3))}, "sample"),
        ({"sample": np.zeros((2, 3, 1), int)}, "sample"),
        ({"sample": np.full((1, 3, 1), 2)}, "ids 2..2"),
        ({"sample": np.full((1, 3, 1), -2)}, "sample"),
        ({"num_tokens": [1, 2]}, "num_tokens"),
        ({"num_tokens": [-1]}, "num_tokens"),
        ({"left_out": [1, 2]}, "left_out"),
        ({"layer_ids": [1, 2]}, "layer_ids"),
        ({"layer_ids": [-1]}, "layer_ids"),
        ({"layer_ids": [0.5]}, "layer_ids"),
    ],
)
def test_bad_input_is_one_line(arguments, word):
    with pytest.raises(PluginError, match=word) as caught:
        RoutingStatistics(**{"load": np.ones((1, 2))} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rows", [np.zeros((3, 2), int), np.zeros((1, 3, 2)), np.full((1, 1, 1), 3), np.full((1, 1, 1), -2)]
)
def test_from_topk_refuses_other_arrays(rows):
    with pytest.raises(PluginError, match="topk_ids"):
        RoutingStatistics.from_topk(rows, 3)


def test_a_row_that_names_an_expert_twice_is_no_routing(caplog):
    """Rows of zeros stand in place of prompts that another server prefilled; they are left out, and reported."""
    rows = np.array([[[3, 1], [0, 0], [2, -1], [1, 1], [-1, -1]]])
    statistics = RoutingStatistics.from_topk(rows, 4)
    assert statistics.load.tolist() == [[0, 1, 1, 1]]
    assert np.diagonal(statistics.coactivation, axis1=1, axis2=2).tolist() == statistics.load.tolist()
    assert statistics.num_tokens.tolist() == [2]
    assert statistics.sample.tolist() == [[[3, 1], [-1, -1], [2, -1], [-1, -1], [-1, -1]]]
    assert statistics.left_out.tolist() == [2]
    assert "2 of 4 rows (50.0 %)" in caplog.text


def test_sums_hold_what_the_callers_types_do_not():
    small = RoutingStatistics(np.full((1, 2), 200, np.uint8), np.full((1, 2, 2), 200, np.uint8))
    large = RoutingStatistics(np.full((1, 2), 2**31 - 1, np.int32))
    assert small.merge(small).load.tolist() == [[400, 400]]
    assert small.merge(small).coactivation.max() == 400
    assert large.merge(large).load.tolist() == [[2**32 - 2] * 2]
    many = small
    for _ in range(2 * MOST_PARTS):
        many = many.merge(small)
    assert many.parts.sum() == many.load.sum() == 2 * 200 * (2 * MOST_PARTS + 1)


def test_unsigned_layer_ids_must_increase_too():
    with pytest.raises(PluginError, match="layer_ids"):
        RoutingStatistics(np.ones((2, 3)), layer_ids=np.array([5, 3], np.uint8))
    assert RoutingStatistics(np.ones((2, 3)), layer_ids=np.array([3, 5], np.uint8)).layer_ids.tolist() == [3, 5]


def test_what_is_too_small_to_be_a_count_is_none():
    """Windows decay; what is left of one must not end in a division by nothing."""
    assert RoutingStatistics(np.array([[5e-324, 1.0]])).load.tolist() == [[0.0, 1.0]]
    with pytest.raises(PluginError, match="load"):
        RoutingStatistics(np.array([[1e300, 1.0]]))
