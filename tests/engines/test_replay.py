"""Recorded tokens, dealt out: which rows, in which order, to whom; on the device alone; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eplb_plugin.engines.replay import Recorded, Replay
from eplb_plugin.errors import PluginError
from processes import run_ranks

LAYERS, TOKENS, TOP_K, EXPERTS = 2, 10, 2, 64
CPU = torch.device("cpu")


def trace(path: Path, first: int = 0, tokens: int = TOKENS) -> str:
    """Token t of layer l selects the experts first + 2 t + l and the next."""
    ids = first + 2 * np.arange(tokens)[:, None] + np.arange(TOP_K)
    np.savez(path, topk_ids=np.stack([ids, ids + 1]), num_experts=EXPERTS)
    return str(path)


def dealt(replay: Replay, layer: object, tokens: int) -> list[int]:
    """The first expert of each token."""
    ids = replay.deal(layer, tokens, TOP_K, EXPERTS, CPU)
    assert (ids[:, 1] == ids[:, 0] + 1).all()
    return ids[:, 0].tolist()


def test_answers_lie_beside_each_other_and_begin_again(tmp_path: Path) -> None:
    """Ten tokens from three places, in turn; every layer has rows of its own and goes on by itself; more layers than
    the trace has begin with its first."""
    replay = Replay(Recorded.parse(f"trace={trace(tmp_path / 'a.npz')},answers=3", "SETTING"))
    order = [0, 4, 7, 1, 5, 8, 2, 6, 9, 3]
    assert dealt(replay, "first", 4) == [2 * token for token in order[:4]]
    assert dealt(replay, "second", 4) == [2 * token + 1 for token in order[:4]]
    assert dealt(replay, "first", 8) == [2 * token for token in [*order[4:], *order[:2]]]
    assert dealt(replay, "second", 1) == [2 * order[4] + 1]
    assert dealt(replay, "third", 10) == [2 * token for token in order]


def test_the_other_trace_follows_at_the_chosen_step(tmp_path: Path) -> None:
    """On the same step in every layer, however many tokens the steps had."""
    one, other = trace(tmp_path / "a.npz"), trace(tmp_path / "b.npz", first=32, tokens=6)
    replay = Replay(Recorded.parse(f"trace={one},steps=3,then={other},answers=1", "SETTING"))
    for step, tokens in enumerate([1, 7, 3, 5, 9, 2]):
        for layer in range(LAYERS):
            ids = dealt(replay, layer, tokens)
            assert (min(ids) >= 32) == (step >= 3)
            assert max(ids) < 32 + 2 * 6


def test_ranks_with_tokens_of_their_own_begin_at_other_places(tmp_path: Path) -> None:
    recorded = Recorded.parse(f"trace={trace(tmp_path / 'a.npz')},answers=1", "SETTING")
    begun = [dealt(Replay(recorded, rank, 5), 0, 1) for rank in range(5)]
    assert begun == [[0], [4], [8], [12], [16]]


def test_rows_that_a_layer_lacks_are_left_out(tmp_path: Path) -> None:
    """Padding of any layer: a token keeps its rows of all layers."""
    ids = np.arange(2 * 4 * 2).reshape(2, 4, 2)
    ids[1, 2] = -1
    np.savez(tmp_path / "a.npz", topk_ids=ids, num_experts=EXPERTS)
    replay = Replay(Recorded.parse(f"trace={tmp_path / 'a.npz'}", "SETTING"))
    assert dealt(replay, 0, 3) == [0, 2, 6]
    assert dealt(replay, 1, 3) == [8, 10, 14]


def on_a_device(path: str, other: str) -> dict[str, Any]:
    """Both traces, by calls that a graph may hold."""
    import simulated_device as sim

    device = sim.install()
    replay = Replay(Recorded.parse(f"trace={path},steps=2,then={other},answers=1", "SETTING"))
    replay.deal(0, 3, TOP_K, EXPERTS, device)
    sim.counts.reset()
    found = [replay.deal(0, 3, TOP_K, EXPERTS, device) for _ in range(3)]
    stops = sim.counts.stops
    return {"stops": stops, "dealt": [sim.host_view(one)[:, 0].tolist() for one in found]}


def test_dealing_never_waits_for_the_device(tmp_path: Path) -> None:
    """After the first call of a layer: no value is read, nothing is copied from the host."""
    one, other = trace(tmp_path / "a.npz"), trace(tmp_path / "b.npz", first=32)
    (found,) = run_ranks(1, on_a_device, one, other, timeout=120.0)
    assert found == {"stops": 0, "dealt": [[6, 8, 10], [44, 46, 48], [50, 32, 34]]}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("trace=", "SETTING: found trace=, expected trace=FILE"),
        ("trace={a},colour=1", "SETTING: found colour=1"),
        ("trace={a},steps=x", "SETTING: found steps=x"),
        ("trace={a},steps=5", "give a trace, both steps and then"),
        ("trace={a},then={a}", "give a trace, both steps and then"),
        ("trace={a},steps=-1,then={a}", "give a trace, both steps and then"),
        ("trace={a},answers=0", "answers > 0"),
        ("trace={folder}/missing.npz", "missing.npz: cannot be read"),
        ("trace={loads}", "loads.npy: found loads only, expected a trace of tokens"),
        ("trace={empty}", "empty.npz: found no token"),
    ],
)
def test_a_bad_one_is_refused(words: str, found: str, tmp_path: Path) -> None:
    """In one line, at the start."""
    np.save(tmp_path / "loads.npy", np.ones((2, EXPERTS)))
    np.savez(tmp_path / "empty.npz", topk_ids=np.full((2, 4, 2), -1))
    names = {"folder": tmp_path, "a": trace(tmp_path / "a.npz")}
    names |= {"loads": tmp_path / "loads.npy", "empty": tmp_path / "empty.npz"}
    with pytest.raises(PluginError) as caught:
        Recorded.parse(words.format(**names), "SETTING")
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("experts", "top_k"), [(EXPERTS, 3), (20, TOP_K)])
def test_the_trace_of_another_model_is_refused(experts: int, top_k: int, tmp_path: Path) -> None:
    """At the engine's trial pass, when the model is known."""
    replay = Replay(Recorded.parse(f"trace={trace(tmp_path / 'a.npz')}", "SETTING"))
    with pytest.raises(PluginError, match=r"a\.npz: found top-2, ids up to 20, expected top-"):
        replay.deal(0, 1, top_k, experts, CPU)
