"""A server that routes as recorded tokens say instead of its model, and from a chosen step on as others say.

Both engines ask their routing simulator for a token's experts; here they are dealt out, layer by layer. Answers that a
file holds one after the other lie beside each other in a server's batch, and so are dealt from several places of it in
turn. Where dealing has got to lives on the device and moves there, so that a captured graph goes on dealing.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import mismatch
from ..workloads.trace import read_window
from .settings import named_values

Rows = NDArray[np.int16]
_KINDS = {"trace": str, "steps": int, "then": str, "answers": int}
WORDS = "trace=FILE or trace=FILE,steps=1000,then=FILE; more keys: answers"


@dataclass(frozen=True)
class Recorded:
    """trace: whose rows are dealt, from its beginning again after its last; then: whose from the call `steps` of a
    layer on, the engine's trial passes before serving counted too. answers: places of a file that are dealt from in
    turn.
    """

    trace: str
    steps: int = 0
    then: str = ""
    answers: int = 64

    @classmethod
    def parse(cls, text: str, setting: str) -> Recorded:
        """From `trace=FILE,steps=1000,then=FILE`, with its files read. PluginError for anything else, in one line."""
        given = named_values(text, _KINDS, setting, WORDS)
        found = cls(**given)
        if not found.trace or bool(found.then) != ("steps" in given) or found.steps < 0 or found.answers < 1:
            raise mismatch(setting, found=text, expected=WORDS, fix="give a trace, both steps and then, answers > 0")
        found.traces  # noqa: B018  # what is wrong with a file is said at the start
        return found

    @cached_property
    def traces(self) -> list[Rows]:
        """[L, T, k] each, in the order of dealing."""
        return [self._read(path) for path in (self.trace, self.then) if path]

    def _read(self, path: str) -> Rows:
        """Tokens that every layer routed, `answers` places of the file in turn."""
        sample = read_window(path).sample
        if sample is None:
            fix = "record one: docs/tools.md"
            raise mismatch(path, found="loads only", expected="a trace of tokens", fix=fix)
        rows = sample[:, (sample >= 0).all(axis=(0, 2))]
        if not rows.shape[1]:
            raise mismatch(path, found="no token", expected="tokens that all layers routed", fix="record a window")
        tokens = np.arange(rows.shape[1])
        places = np.array_split(tokens, min(self.answers, len(tokens)))
        order = np.argsort(np.concatenate([np.arange(len(one)) for one in places]), kind="stable")
        return rows[:, order]


@dataclass(eq=False)
class _Layer:
    """rows: [T, k] of all traces, of which each has `length` from `first` on; dealt, calls: [1]."""

    rows: torch.Tensor
    first: torch.Tensor
    length: torch.Tensor
    dealt: torch.Tensor
    calls: torch.Tensor


class Replay:
    """Deals out rows. Ranks that route the same tokens make the same calls and so deal the same rows.

    source, sources: of ranks that route tokens of their own; each begins at another place.
    """

    def __init__(self, recorded: Recorded, source: int = 0, sources: int = 1) -> None:
        self.recorded, self._source, self._sources = recorded, source, sources
        self._layers: dict[Hashable, _Layer] = {}

    def deal(self, layer: Hashable, tokens: int, top_k: int, experts: int, device: torch.device) -> torch.Tensor:
        """[tokens, top_k] int64 logical ids. layer: anything that is the same in every call; a model's layers come in
        their order at first, in the engine's trial pass, before graphs are captured.
        """
        if layer not in self._layers:
            refuse_other_models(self.recorded, experts, top_k)
            self._layers[layer] = self._prepared(len(self._layers), device)
        one = self._layers[layer]
        now = (one.calls >= self.recorded.steps).long().clamp_max(len(one.first) - 1)
        places = one.first[now] + (one.dealt + torch.arange(tokens, device=device)) % one.length[now]
        one.dealt.add_(tokens)
        one.calls.add_(1)
        return one.rows[places].long()

    def _prepared(self, number: int, device: torch.device) -> _Layer:
        """Of a model's MoE layer by number; where it has more than a trace, layers of the trace serve several."""
        rows = [trace[number % len(trace)] for trace in self.recorded.traces]
        lengths = [len(one) for one in rows]
        return _Layer(
            rows=torch.from_numpy(np.concatenate(rows)).to(device),
            first=torch.tensor([0, *lengths[:-1]], device=device),
            length=torch.tensor(lengths, device=device),
            dealt=torch.tensor([lengths[0] * self._source // self._sources], device=device),
            calls=torch.zeros(1, dtype=torch.int64, device=device),
        )


def refuse_other_models(recorded: Recorded, experts: int, top_k: int) -> None:
    """Raises PluginError for traces of a model with fewer experts, or another number of them per token."""
    for path, rows in zip((recorded.trace, recorded.then), recorded.traces, strict=False):
        if rows.shape[2] != top_k or rows.max() >= experts:
            found = f"top-{rows.shape[2]}, ids up to {rows.max()}"
            expected = f"top-{top_k} of {experts} experts"
            raise mismatch(path, found=found, expected=expected, fix="replay a trace of this model")
