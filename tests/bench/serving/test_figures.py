"""A round's figures from its three sources, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from eplb_cpu_engines.meter import Meter, Seat

from bench.serving.figures import MeterMark, Shape, crossed, metered, round_figures
from network.namespaces import Traffic


def route(folder: Path, windows: list[list[list[int]]]) -> None:
    """Two ranks, two slots each, two nodes; every window is one step, in which rank 0 routes these tokens."""
    meters = [Meter(folder, Seat(rank, 2, 2, 2), window=1) for rank in range(2)]
    for rows in windows:
        for meter in meters:
            own = np.array(rows if meter.seat.rank == 0 else np.empty((0, 2), int))
            meter.record("layer", own, 1)
            meter.rebalances += 1
            meter.end_step()


def test_only_what_was_routed_since_the_mark_counts(tmp_path: Path) -> None:
    assert MeterMark.of(tmp_path) == MeterMark(0, 0, 0)
    route(tmp_path, [[[2, 3]]])
    mark = MeterMark.of(tmp_path)
    assert mark == MeterMark(1, 0, 1)
    (tmp_path / "rank0.jsonl").unlink()
    (tmp_path / "rank1.jsonl").unlink()
    route(tmp_path, [[[2, 3]], [[0, 1], [0, 2]], [[1, 3]]])
    # copies: 0, 1 and 1 of three tokens; load: 2 + 1 + 1 on the first rank, 1 + 1 on the second
    assert metered(tmp_path, mark) == {
        "copies_per_token": pytest.approx(2 / 3), "balancedness": pytest.approx(3 / 4),
        "slots_moved": 0, "rebalances": 2,
    }  # fmt: skip


def test_a_round_in_which_nothing_was_routed_is_refused(tmp_path: Path) -> None:
    route(tmp_path, [[[0, 1]]])
    with pytest.raises(ValueError, match="no routed token"):
        metered(tmp_path, MeterMark.of(tmp_path))


def test_bytes_of_all_links_and_of_the_busiest() -> None:
    before = [Traffic(10, 10), Traffic(0, 0), Traffic(5, 5)]
    after = [Traffic(110, 20), Traffic(50, 130), Traffic(5, 35)]
    assert crossed(before, after) == {"bytes": 150, "busiest_link_bytes": 130}


def test_what_is_no_activation_is_fixed_traffic() -> None:
    """Two layers, hidden 8: a copy is 64 bytes in all; half a copy per token and layer, 3 routed per output."""
    bench = {"output_tokens": 100.0, "input_tokens": 200.0}
    counts = {"copies_per_token": 0.5, "balancedness": 0.9}
    figures = round_figures(bench, {"bytes": 30_000, "busiest_link_bytes": 20_000}, counts, Shape(2, 8))
    assert figures["bytes_per_output_token"] == 300
    assert figures["busiest_link_bytes_per_output_token"] == 200
    assert figures["payload_bytes_per_output_token"] == pytest.approx(0.5 * 2 * 64 * 3)
    assert figures["fixed_bytes_per_output_token"] == pytest.approx(300 - 192)
