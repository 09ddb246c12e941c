"""Check: what recording, mapping and moving cost on this device. Nothing is judged but that it is the same work."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from ..dispatch.cover import cover_maps
from ..migration.checksum import SEAL_WORDS, seal
from ..migration.layout import ExpertRows
from ..plan_types import Dispatch
from .checks import Check, Figures, expect_equal
from .lanes import Lane, make_ids, make_plan
from .memory import SHAPES
from .site import Site


def check_times(site: Site) -> Figures:
    return _passes(site) | _steps(site) | _rows(site)


def _passes(site: Site) -> Figures:
    """Microseconds a layer: recording and mapping, against a kernel that only maps."""
    site.refuse_no_triton()
    from .map_only import map_only

    def only(rows: torch.Tensor, ids: torch.Tensor) -> None:
        for one in rows:
            map_only(ids, one)

    layers, experts, top_k = site.pick(58, 2), site.pick(256, 9), site.pick(8, 3)
    rng, figures = np.random.default_rng(0), Figures()
    kinds: tuple[Dispatch, ...] = ("weighted", "cover")
    for tokens in (1, 128, 4096) if site.full else (5,):
        for dispatch in kinds:
            plan = make_plan(rng, dispatch, layers=layers, experts=experts, nodes=4, spare=site.pick(32, 3))
            lane = Lane(plan, site.device, top_k=top_k, max_tokens=8192)
            spread = torch.from_numpy(np.abs(make_ids(rng, tokens, experts, top_k))).to(site.device)
            work: dict[str, Callable[[], object]] = {
                f"{dispatch}": partial(_forward, lane, spread),
                f"{dispatch}, all tokens alike": partial(_forward, lane, spread[:1].expand(tokens, -1).contiguous()),
            }
            if dispatch == "weighted":
                rows = lane.tables.rows
                expect_equal("slots of the kernel that only maps", map_only(spread, rows[0]), lane.map(spread, 0))
                work["only mapped"] = partial(only, rows, spread)
            for name, run in work.items():
                eager = site.seconds(run, site.pick(20, 1))
                figures[f"us a layer, {name}, {tokens} tokens, eager"] = round(eager * 1e6 / layers, 2)
                if site.graphs:
                    replayed = site.seconds(site.capture(run), site.pick(20, 1))
                    figures[f"us a layer, {name}, {tokens} tokens, in a graph"] = round(replayed * 1e6 / layers, 2)
    return figures


def _forward(lane: Lane, ids: torch.Tensor) -> None:
    for layer in range(lane.layers):
        lane.map(ids, layer)


def _steps(site: Site) -> Figures:
    """What the end of a step, and of a window, costs."""
    layers, experts, top_k, tokens = site.pick(58, 2), site.pick(256, 9), site.pick(8, 3), site.pick(512, 5)
    rng = np.random.default_rng(0)
    plan = make_plan(rng, "cover", layers=layers, experts=experts, nodes=4, spare=site.pick(32, 3))
    lane, every = Lane(plan, site.device, top_k=top_k, max_tokens=site.pick(8192, 8)), list(range(layers))
    lane.set(tokens)
    tables, maps = lane.tables.cover, cover_maps(plan, every)
    assert tables is not None
    repeats = site.pick(50, 1)

    def fold() -> None:
        lane.recorder.expect([tokens])
        lane.recorder.fold()

    figures = {
        "us, fold of a step": site.seconds(fold, repeats) * 1e6,
        "us, drop of a step": site.seconds(lane.recorder.drop, repeats) * 1e6,
        f"us, new tables of {layers} layers": site.seconds(lambda: tables.put(maps, every), repeats) * 1e6,
    }
    began = time.perf_counter()
    for _ in range(repeats):
        fold()
    figures["us of the host, fold of a step"] = (time.perf_counter() - began) / repeats * 1e6
    site.synchronize()
    return {name: round(value, 1) for name, value in figures.items()}


def _rows(site: Site) -> Figures:
    """Moving one layer of a rank of DeepSeek-V3 on 8: GB/s of memory that an expert's bytes are read or written at."""
    slots, size = site.pick(36, 4), site.pick(-(-SHAPES["DeepSeek-V3"].expert_bytes // 16) * 16, 4096)
    matrix = torch.zeros(slots, size // 8, dtype=torch.int64, device=site.device)
    layer = ExpertRows((matrix,), (0,), size + 8 * SEAL_WORDS, size, "")
    rows = torch.ones(slots, layer.row_bytes, dtype=torch.uint8, device=site.device)
    order, identity = torch.arange(slots), torch.arange(slots)
    took = {
        "reading": site.seconds(lambda: layer.read(order, rows)),
        "sealing": site.seconds(lambda: seal(rows, identity)),
        "putting in place": site.seconds(lambda: layer.write(order, rows)),
    }
    figures = {f"ms, {name} {slots} experts": round(seconds * 1e3, 3) for name, seconds in took.items()}
    return figures | {f"GB/s, {name}": round(slots * size / seconds / 1e9, 1) for name, seconds in took.items()}


TIMES = Check("times", "The cost of recording, mapping and moving on this device (measured, not judged)", check_times)
