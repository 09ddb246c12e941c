"""Seals: the end of every staging row says which expert it is and what its bytes add up to at the source.

The sum is weighted by position and covers every word, not a sample: at the speed of memory that costs little beside a
transfer (docs/migration.md), and any single wrong word changes it for certain, because the weights are odd.
"""

from __future__ import annotations

from functools import cache

import torch

from ..devices import sent

SEAL_WORDS = 2  # int64 words at the end of a row: the sum, and nothing (rows stay aligned to 16 bytes)
_BLOCK = 1 << 12  # words; the weights of longer rows are products of two
_SCRATCH = 32 << 20  # bytes of products that an accelerator keeps at once, unless one row has more
_MIX = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio, odd


def seal(rows: torch.Tensor, identity: torch.Tensor) -> None:
    """rows: [n, row_bytes] uint8; identity: [n] int64, what each row is to be (expert, layer, migration)."""
    rows.view(torch.int64)[:, -SEAL_WORDS] = _sums(rows, identity)


def broken(rows: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
    """[n] bool, where the rows are: those whose bytes or identity are not what was sealed. Nobody waits for it here."""
    return rows.view(torch.int64)[:, -SEAL_WORDS] != _sums(rows, identity)


def _sums(rows: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
    words = rows.view(torch.int64)[:, :-SEAL_WORDS]
    return _weighted(words) + sent(identity, words.device) * _MIX


def _weighted(words: torch.Tensor) -> torch.Tensor:
    """[n, W] int64 -> [n]: sum of words times the weight of their position, modulo 2**64."""
    count, width = words.shape
    if width <= _BLOCK:
        return _product(words, _weights(width, words.device))
    blocks = width // _BLOCK
    inner, outer = _weights(_BLOCK, words.device), _weights(blocks, words.device)
    whole = words[:, : blocks * _BLOCK].view(count, blocks, _BLOCK)
    # a few rows at a time: on a CPU one, since those of a batch are not contiguous and would be copied
    step = 1 if words.device.type == "cpu" else max(1, _SCRATCH // (8 * blocks * _BLOCK))
    sums = [_product(whole[begin : begin + step], inner) for begin in range(0, count, step)]
    rest = _product(words[:, blocks * _BLOCK :], _weights(width - blocks * _BLOCK, words.device) * _MIX)
    return _product(torch.cat(sums), outer) + rest


def _product(matrix: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if matrix.device.type == "cpu":
        return matrix @ weights
    return (matrix * weights).sum(-1)  # no integer product on accelerators


@cache
def _weights(count: int, device: torch.device) -> torch.Tensor:
    position = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    mixed = position * _MIX
    return (mixed ^ (mixed >> 29)) * _MIX | 1
