"""Bytes and operations of an op: what is sent arrives, and expectations are those of tokens drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.peo.cost import BLOCK_M, Traffic, even_shares, shares_of
from eplb_plugin.peo.ops import Kind
from eplb_plugin.peo.presets import MODELS, Model

DEEPSEEK = MODELS["deepseek-v3"]


@pytest.mark.parametrize("kind", ["dispatch send", "combine send"])
def test_what_is_sent_is_received(kind: Kind):
    rng = np.random.default_rng(0)
    traffic = Traffic(DEEPSEEK, shares_of(rng.random(64), 8), 100)
    for experts in ((0, 8), (2, 4)):
        assert traffic.sent_bytes(kind, experts).sum() == pytest.approx(traffic.received_bytes(kind, experts).sum())


def test_bytes_are_those_of_tokens_drawn_at_random():
    """By a drawing: every rank's tokens choose experts, and selections of other ranks' experts cross the link."""
    rng, model, ranks, batch = np.random.default_rng(1), Model("m", 8, 2, 256, 64), 4, 5000
    traffic = Traffic(model, shares_of(rng.random(8) + 0.1, ranks), batch)
    chosen = rng.choice(8, (ranks, batch * model.top_k), p=traffic.shares.ravel())
    sent, received = np.zeros(ranks), np.zeros(ranks)
    for rank, experts in enumerate(chosen):
        there = experts[(experts // 2 != rank) & (experts % 2 == 1)] // 2  # experts of the second slice
        sent[rank] = len(there)
        received += np.bincount(there, minlength=ranks)
    row = 256 + 256 / 128 * 4 + 16  # values, scales, place
    np.testing.assert_allclose(traffic.sent_bytes("dispatch send", (1, 2)), sent * row, rtol=0.05)
    np.testing.assert_allclose(traffic.received_bytes("dispatch send", (1, 2)), received * row, rtol=0.05)
    np.testing.assert_allclose(traffic.sent_bytes("combine send", (1, 2)), received * 512, rtol=0.05)
    np.testing.assert_allclose(traffic.received_bytes("combine recv", (1, 2)), sent * 512, rtol=0.05)


def test_gemms_pad_rows_to_tiles_and_read_the_weights_of_busy_experts():
    """One expert with all tokens: whole tiles, its weights once; the gate-up projection is twice the down one."""
    shares = np.array([[1.0, 0.0], [0.0, 0.0]])
    traffic = Traffic(DEEPSEEK, shares, 10)
    operations, weights = traffic.gemm("gemm down", (0, 2))
    size = DEEPSEEK.hidden * DEEPSEEK.intermediate
    tiles = -(-2 * 10 * DEEPSEEK.top_k // BLOCK_M)
    assert operations.tolist() == [pytest.approx(2 * size * tiles * BLOCK_M), 0.0]
    assert weights.tolist() == [pytest.approx(size), 0.0]
    assert traffic.gemm("gemm up", (0, 2))[0][0] == pytest.approx(2 * operations[0])
    rare = Traffic(DEEPSEEK, np.array([[1.0 - 1e-4, 1e-4]]), 1).gemm("gemm down", (1, 2))[1]
    assert rare[0] == pytest.approx(size * 8e-4, rel=0.01)  # that it has a token at all is that unlikely


def test_shares_of_a_layer():
    """Slots in order of ranks; a layer without load has none."""
    assert shares_of([1, 3, 0, 4], 2).tolist() == [[0.125, 0.375], [0.0, 0.5]]
    assert even_shares(2, 4).tolist() == [[0.125] * 4] * 2
    assert shares_of(np.zeros(4), 2).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Traffic(DEEPSEEK, np.ones((2, 4)), 1), "shares: found (2, 4), sum 8, expected"),
        (lambda: Traffic(DEEPSEEK, np.array([[1.5, -0.5]]), 1), "shares: found (1, 2), sum 1, expected"),
        (lambda: Traffic(DEEPSEEK, np.array([1.0]), 1), "shares: found (1,)"),
        (lambda: Traffic(DEEPSEEK, even_shares(2, 4), 0), "batch: found 0"),
        (lambda: shares_of(np.ones(10), 3), "ranks: found 3 for 10 slots"),
        (lambda: shares_of(np.ones((2, 5)), 5), "ranks: found 5 for 10 slots"),
    ],
)
def test_refused_in_one_line(wrong, words: str):
    with pytest.raises(PluginError) as error:
        wrong()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
