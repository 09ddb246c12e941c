"""Clustered top-k routing for tests and demos: tokens have topics, and topics prefer experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import mismatch

BLOCK = 4096  # tokens drawn at once: bounds the memory of a large window


@dataclass(frozen=True)
class ClusteredRouter:
    """A random router whose tokens fall into topics; equal fields and equal seeds give equal tokens.

    strength: how much a topic decides (0 = none); skew: how unequal experts are in general (0 = even);
    purity: share of a topic's taste that is for experts of its own, 0 = tastes are random and overlap, 1 = they do not;
    num_groups, top_groups: group-limited routing as in DeepSeek-V3: a token picks `top_groups` of the contiguous expert
    groups by their two best experts, and its experts only there. num_groups 1 = no limit.
    mix_seed, drift: the topic mixture of a window; drift 0 … 1 moves it towards an unrelated one.
    biases: [layers, experts] float32 how popular experts are in general; default: random, as unequal as `skew` says.
    """

    num_layers: int
    num_experts: int
    top_k: int
    num_topics: int = 24
    strength: float = 1.5
    skew: float = 0.5
    purity: float = 0.0
    num_groups: int = 1
    top_groups: int = 1
    model_seed: int = 0
    mix_seed: int = 0
    drift: float = 0.0
    biases: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts // self.num_groups * self.top_groups:
            limit = f"1..{self.num_experts // self.num_groups * self.top_groups}"
            raise mismatch("router.top_k", found=self.top_k, expected=limit, fix="lower top_k, or raise top_groups")
        if self.num_experts % self.num_groups or not 1 <= self.top_groups <= self.num_groups:
            found = f"{self.num_groups} groups, top {self.top_groups}"
            fix = "choose num_groups that divides the experts, top_groups within it"
            raise mismatch("router groups", found=found, expected=f"a divisor of {self.num_experts}", fix=fix)
        for name in ("purity", "drift"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                fix = "pass a value from 0 to 1"
                raise mismatch(f"router.{name}", found=getattr(self, name), expected="0.0..1.0", fix=fix)

    def drifted(self, drift: float) -> ClusteredRouter:
        """The same model under a topic mixture that moved by `drift`."""
        return replace(self, drift=drift)

    def window(self, num_tokens: int, seed: int = 0) -> NDArray[np.int16]:
        """[layers, tokens, k] int16 logical ids, distinct within a token."""
        return np.stack([self._layer(layer, num_tokens, seed) for layer in range(self.num_layers)])

    def topic_mixture(self) -> NDArray[np.float64]:
        """[topics] probability of every topic in this window."""
        rng = np.random.default_rng([self.mix_seed, 7])
        now, later = rng.dirichlet(np.ones(self.num_topics), size=2)
        return (1.0 - self.drift) * now + self.drift * later

    def scores(self, layer: int, num_tokens: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
        """Blocks of [tokens, experts] float32 scores before the biases: what a token draws and its topics want."""
        model = np.random.default_rng([self.model_seed, layer, 1])
        model.standard_normal(self.num_experts)  # the biases'
        taste = model.standard_normal((self.num_topics, self.num_experts)).astype(np.float32)
        taste = (np.sign(taste) * np.abs(taste) ** 1.3).astype(np.float32)  # few experts that a topic really wants
        owner = model.permutation(self.num_experts) % self.num_topics
        own = (owner == np.arange(self.num_topics)[:, None]).astype(np.float32)
        taste = ((1.0 - self.purity) * taste + self.purity * own).astype(np.float32)
        draw = np.random.default_rng([self.model_seed, layer, 2, seed])
        mixture = self.topic_mixture()
        for begin in range(0, num_tokens, BLOCK):
            count = min(BLOCK, num_tokens - begin)
            main, side = draw.choice(self.num_topics, size=(2, count), p=mixture)
            weight = draw.beta(4.0, 1.5, size=(count, 1)).astype(np.float32)
            wanted = self.strength * (weight * taste[main] + (1 - weight) * taste[side])
            yield wanted + draw.gumbel(size=wanted.shape).astype(np.float32)

    def pick(self, scores: NDArray[np.float32]) -> NDArray[np.int16]:
        """[tokens, experts] scores with the biases -> [tokens, k] the best, within the token's expert groups."""
        if self.num_groups > 1:
            by_group = scores.reshape(len(scores), self.num_groups, -1)
            best_two = np.sort(by_group, axis=2)[:, :, -2:].sum(axis=2)
            allowed = np.zeros(best_two.shape, bool)
            np.put_along_axis(allowed, np.argsort(-best_two, axis=1)[:, : self.top_groups], True, axis=1)
            scores = np.where(np.repeat(allowed, by_group.shape[2], axis=1), scores, -np.inf)
        return np.argsort(-scores, axis=1)[:, : self.top_k].astype(np.int16)

    def _bias(self, layer: int) -> NDArray[np.float32]:
        if self.biases is not None:
            return self.biases[layer]
        model = np.random.default_rng([self.model_seed, layer, 1])
        return (model.standard_normal(self.num_experts) * self.skew).astype(np.float32)

    def _layer(self, layer: int, num_tokens: int, seed: int) -> NDArray[np.int16]:
        bias = self._bias(layer)
        rows = [self.pick(bias + block) for block in self.scores(layer, num_tokens, seed)]
        return np.concatenate([np.empty((0, self.top_k), np.int16), *rows])
