"""Bytes and operations of an op on a rank: what the timeline model divides by speeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import mismatch
from .ops import Kind
from .presets import Model

HEADER_BYTES = 16  # of a dispatched token: its place in the source's batch
SCALE_BYTES_PER_VALUE = 4 / 128  # one FP32 scale for 128 FP8 values
BLOCK_M = 64  # rows of a tile of DeepGEMM's masked GEMM: fewer cost as much
Experts = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Traffic:
    """One MoE layer's step. shares: [ranks, local experts] of all selections, summing to 1, slots in order of rounds;
    batch: tokens of every rank.

    Counts are expectations for tokens drawn independently, so that they grow smoothly with the batch.
    Raises PluginError for shares that are none, or a batch < 1.
    """

    model: Model
    shares: NDArray[np.float64]
    batch: int

    def __post_init__(self) -> None:
        shares = np.asarray(self.shares, np.float64)
        if shares.ndim != 2 or not shares.size or not (shares >= 0.0).all() or abs(shares.sum() - 1.0) > 1e-6:
            found = f"{shares.shape}, sum {shares.sum():g}"
            fix = "divide the shares by their sum"
            raise mismatch("shares", found=found, expected="[ranks, local experts] that sum to 1", fix=fix)
        if self.batch < 1:
            fix = "pass at least one token per rank"
            raise mismatch("batch", found=self.batch, expected=">= 1 token per rank", fix=fix)
        object.__setattr__(self, "shares", shares)

    @property
    def num_ranks(self) -> int:
        return len(self.shares)

    @property
    def num_local_experts(self) -> int:
        return self.shares.shape[1]

    @property
    def selections(self) -> float:
        """(token, expert) pairs of all ranks together."""
        return float(self.num_ranks * self.batch * self.model.top_k)

    def token_bytes(self, kind: Kind) -> float:
        if kind.startswith("dispatch"):
            return self.model.hidden * (1.0 + SCALE_BYTES_PER_VALUE) + HEADER_BYTES
        return self.model.hidden * 2.0

    def of_tokens(self, experts: Experts) -> NDArray[np.float64]:
        """[ranks] selections that a rank's own tokens make of other ranks' experts in the slice."""
        load = self.shares[:, slice(*experts)].sum(axis=1)
        return (load.sum() - load) * self.batch * self.model.top_k

    def of_experts(self, experts: Experts) -> NDArray[np.float64]:
        """[ranks] selections of a rank's experts in the slice by other ranks' tokens."""
        load = self.shares[:, slice(*experts)].sum(axis=1)
        return load * self.selections * (self.num_ranks - 1) / self.num_ranks

    def sent_bytes(self, kind: Kind, experts: Experts) -> NDArray[np.float64]:
        """[ranks] bytes on the link out of a rank: of tokens in a dispatch, of experts' outputs in a combine."""
        count = self.of_tokens(experts) if kind.startswith("dispatch") else self.of_experts(experts)
        return count * self.token_bytes(kind)

    def received_bytes(self, kind: Kind, experts: Experts) -> NDArray[np.float64]:
        """[ranks] bytes on the link into a rank."""
        count = self.of_experts(experts) if kind.startswith("dispatch") else self.of_tokens(experts)
        return count * self.token_bytes(kind)

    def gemm(self, kind: Kind, experts: Experts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """([ranks] floating point operations with rows padded to tiles, [ranks] weight bytes) of experts with tokens.

        An expert with n expected selections has any with probability 1 - exp(-n), and then n / that many.
        """
        expected = self.shares[:, slice(*experts)] * self.selections
        active = -np.expm1(-expected)
        rows = expected / np.maximum(active, 1e-12)
        padded = active * np.ceil(rows / BLOCK_M - 1e-9) * BLOCK_M
        size = self.model.hidden * self.model.intermediate * (2.0 if kind == "gemm up" else 1.0)
        return 2.0 * size * padded.sum(axis=1), size * active.sum(axis=1)


def even_shares(num_ranks: int, num_local_experts: int) -> NDArray[np.float64]:
    """[ranks, local experts], all equal."""
    return np.full((num_ranks, num_local_experts), 1.0 / (num_ranks * num_local_experts))


def shares_of(load: ArrayLike, num_ranks: int) -> NDArray[np.float64]:
    """load: [slots] of one layer -> [ranks, local experts]. PluginError if the ranks do not divide the slots."""
    row = np.asarray(load, np.float64)
    if num_ranks < 1 or row.ndim != 1 or len(row) % num_ranks:
        raise mismatch("ranks", found=f"{num_ranks} for {row.size} slots", expected="a divisor", fix="pass the EP size")
    return row.reshape(num_ranks, -1) / max(float(row.sum()), 1e-300)
