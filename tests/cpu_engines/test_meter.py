"""The routing meter against counting by hand."""

import json

import numpy as np
import pytest
from eplb_cpu_engines.meter import Meter, Seat, read_meter

RANKS, NODES, SLOTS = 4, 2, 3


def seat(rank: int, num_nodes: int = NODES) -> Seat:
    return Seat(rank, RANKS, num_nodes, SLOTS)


def count_by_hand(ids: np.ndarray, own_rank: int) -> tuple[list[int], int]:
    """Selections of each rank, and cross-node copies, one token and one expert at a time."""
    selections, copies = [0] * RANKS, 0
    for token in ids.tolist():
        nodes = set()
        for slot in token:
            if slot >= 0:
                selections[slot // SLOTS] += 1
                nodes.add(slot // SLOTS // (RANKS // NODES))
        copies += len(nodes - {own_rank // (RANKS // NODES)})
    return selections, copies


def test_counts_as_by_hand(tmp_path):
    random = np.random.default_rng(0)
    selections, copies, tokens = np.zeros((2, RANKS)), np.zeros(2), 0
    for rank in range(RANKS):
        meter = Meter(tmp_path, seat(rank), window=2)
        for _step in range(2):
            count = random.integers(0, 20)
            tokens += count
            for layer in range(2):
                ids = random.integers(-1, RANKS * SLOTS, (count, 3))
                here, crossed = count_by_hand(ids, rank)
                selections[layer] += here
                copies[layer] += crossed
                meter.record(f"layer{layer}", ids, owners=1)
            meter.end_step()
    result = read_meter(tmp_path)
    assert result["layers"] == ["layer0", "layer1"]
    np.testing.assert_array_equal(result["window"], [0])
    np.testing.assert_array_equal(result["tokens"], [tokens])
    np.testing.assert_array_equal(result["selections"], [selections])
    np.testing.assert_allclose(result["balancedness"], [(selections.mean(1) / selections.max(1)).mean()])
    np.testing.assert_allclose(result["copies_per_token"], [copies.mean() / tokens])


def test_tokens_with_several_owners_count_once(tmp_path):
    """Two pairs of ranks; the ranks of a pair see the same tokens and lie on the same node."""
    ids = np.array([[0, 3], [0, 9]])
    for rank in range(RANKS):
        meter = Meter(tmp_path, seat(rank), window=1)
        meter.record("layer", ids if rank < 2 else ids[:0], owners=2)
        meter.end_step()
    result = read_meter(tmp_path)
    assert result["tokens"].tolist() == [2]
    assert result["selections"].tolist() == [[[2, 1, 0, 1]]]
    assert result["copies_per_token"].tolist() == [0.5]


def test_windows_are_counted_in_steps_and_thin_or_unfinished_ones_left_out(tmp_path):
    meters = [Meter(tmp_path, seat(rank), window=2) for rank in range(RANKS)]
    for step in range(6):
        for meter in meters:
            if step != 2:  # a step without tokens, as a dummy step is, is a step all the same
                meter.record("layer", np.zeros((1 + step, 2), int), owners=1)
            if not (step == 5 and meter is meters[-1]):
                meter.end_step()
    assert read_meter(tmp_path)["window"].tolist() == [0, 1]
    assert read_meter(tmp_path)["tokens"].tolist() == [4 * 3, 4 * 4]
    assert read_meter(tmp_path, min_tokens=13)["window"].tolist() == [1]


def test_a_half_written_line_is_not_read(tmp_path):
    for rank in range(RANKS):
        meter = Meter(tmp_path, seat(rank), window=1)
        meter.record("layer", np.zeros((1, 2), int), owners=1)
        meter.end_step()
    with (tmp_path / "rank0.jsonl").open("a") as file:
        file.write('{"window": 1, "ra')
    assert read_meter(tmp_path)["window"].tolist() == [0]


def test_forget_drops_the_counts_but_no_step(tmp_path):
    meter = Meter(tmp_path, Seat(0, 1, 1, SLOTS), window=1)
    meter.record("layer", np.zeros((5, 2), int), owners=1)
    meter.forget()
    meter.record("layer", np.zeros((1, 2), int), owners=1)
    meter.end_step()
    assert json.loads((tmp_path / "rank0.jsonl").read_text())["tokens"] == [1]


def test_two_runs_in_one_folder_are_refused(tmp_path):
    for _run in range(2):
        meter = Meter(tmp_path, Seat(0, 1, 1, SLOTS), window=1)
        meter.end_step()
    with pytest.raises(ValueError, match=r"window 0 of a rank twice .* its own folder"):
        read_meter(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="was EPLB_METER_DIR set"):
        read_meter(tmp_path)


def test_nodes_that_do_not_divide_the_ranks_are_refused():
    with pytest.raises(ValueError, match="found 3 nodes for 4 ranks"):
        seat(0, num_nodes=3)


def test_moves_are_experts_that_a_rank_did_not_hold(tmp_path):
    """Reordering a rank's slots moves nothing; totals do not depend on tokens."""
    old = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]])
    new = np.array([[2, 1, 0, 3, 4, 9, 6, 7, 8, 9, 0, 0]])
    for rank in range(RANKS):
        meter = Meter(tmp_path, seat(rank), window=1)
        meter.moved(old, new)
        meter.rebalances += 1
        meter.end_step()
        meter.end_step()
    result = read_meter(tmp_path)
    assert result["slots_moved"] == 2
    assert result["rebalances"] == 1
