"""The load of a window, summed over ranks on the host: each token once, and the recorder begins anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin.errors import PluginError
from eplb_plugin.recording.load import sum_load, take_load
from eplb_plugin.recording.recorder import Recorder
from processes import run_ranks
from recorded import route_layer


def rows(owner: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(owner).permuted(np.tile(np.arange(8), (20, 1)), axis=1)[:, :2])


def summed(owners: int, unequal: bool) -> tuple[list, int, int] | str | None:
    recorder, rank = Recorder(2, 8, 2, 32, 64, torch.device("cpu")), dist.get_rank()
    recorder.expect([20])
    for layer in range(2):
        route_layer(recorder, layer, rows(rank if unequal else rank // owners))
    recorder.fold()
    load = take_load(recorder)
    left = int(recorder.load.sum()) + int(recorder.pairs.sum()) + int(recorder.num_tokens)
    try:
        window = sum_load(load(), dist.group.WORLD, owners, [3, 5])
    except PluginError as error:
        return str(error)
    return None if window is None else (window.load.tolist(), int(window.num_tokens[0]), left)


@pytest.mark.parametrize("owners", [1, 2])
def test_summed_over_owners(owners: int) -> None:
    first, *others = run_ranks(4, summed, owners, False)
    assert others == [None] * 3
    expected = sum(np.bincount(rows(owner).numpy().ravel(), minlength=8) for owner in range(4 // owners))
    assert first == ([expected.tolist()] * 2, 20 * 4 // owners, 0)


def test_unequal_owners_are_refused() -> None:
    first, *_ = run_ranks(4, summed, 2, True)
    assert "token-owner group 0: found ranks that recorded different routing" in first
