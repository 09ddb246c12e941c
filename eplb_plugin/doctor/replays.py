"""Check: all layers of a model in one captured graph, whose replays follow what is filled in between them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..dispatch.cover import CoverMaps, cover_maps
from .checks import Check, Figures, expect, expect_equal
from .lanes import HOST, Lane, make_ids, make_plan
from .site import Site


def check_replays(site: Site) -> Figures:
    """With other tokens, other switches and other tables; some queued ahead of a refill, none waited for."""
    layers, experts, top_k = site.pick(58, 3), site.pick(256, 9), site.pick(8, 3)
    figures: Figures = {"layers": layers, "captured": site.graphs}
    for tokens in (1, 128, 512) if site.full else (1, 17):
        rng = np.random.default_rng(tokens)
        plans = [
            make_plan(rng, "cover", layers=layers, experts=experts, nodes=4, spare=site.pick(32, 3)) for _ in range(2)
        ]
        there, here = (Lane(plans[0], device, top_k=top_k, max_tokens=512) for device in (site.device, HOST))
        ids = torch.zeros(layers, tokens, top_k, dtype=torch.int64, device=site.device)
        slots = torch.zeros_like(ids)

        def forward(there: Lane = there, ids: torch.Tensor = ids, slots: torch.Tensor = slots) -> None:
            for layer in range(layers):
                slots[layer].copy_(there.map(ids[layer], layer))

        replay = site.capture(forward)
        there.recorder.drop()
        there.slot_load.zero_()
        for turn in range(6):
            drawn = torch.from_numpy(np.stack([make_ids(rng, tokens, experts, top_k) for _ in range(layers)]))
            real = int(rng.integers(0, 2 * tokens))
            for lane in (there, here):
                lane.set(real, load=turn % 3 != 2, pairs=turn < 4, slots=turn % 2 == 0)
            ids.copy_(drawn)
            ahead = 3 if turn % 2 else 1
            for _ in range(ahead):
                replay()
            maps, some = cover_maps(plans[(turn + 1) % 2], range(layers)), list(range(layers))
            _put(there, maps, some)
            replay()
            for _ in range(ahead):
                for layer in range(layers):
                    here.map(drawn[layer], layer)
            _put(here, maps, some)
            expected = torch.stack([here.map(drawn[layer], layer) for layer in range(layers)])
            expect_equal(f"slots of {tokens} tokens in turn {turn}", slots, expected)
            for lane in (there, here):
                lane.recorder.fold()
        there.equals(f"{tokens} tokens replayed", here)
        figures[f"bytes left by replays, {tokens} tokens"] = _growth(site, replay)
    return figures


def _put(lane: Lane, maps: CoverMaps, layers: list[int]) -> None:
    assert lane.tables.cover is not None
    lane.tables.cover.put(maps, layers)


def _growth(site: Site, replay: Callable[[], object]) -> int:
    """Bytes that a thousand replays left allocated."""
    before = site.allocated
    for _ in range(site.pick(1000, 5)):
        replay()
    site.synchronize()
    if before is None or site.allocated is None:
        return 0
    growth = site.allocated - before
    expect("memory after replays", growth == 0, found=growth, expected="0 bytes more")
    return growth


REPLAYS = Check(
    "replays",
    "Layers captured in one graph map by the tables, and count by the switches, in force at the replay",
    check_replays,
)
