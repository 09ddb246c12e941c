"""Check: what the plugin holds of a device's memory at the sizes of real models is what it says, and fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ..engines.device_tables import DispatchTables
from ..migration.checksum import SEAL_WORDS
from ..migration.layout import ExpertRows
from ..migration.limits import Budget
from ..migration.wires.group import GroupWires
from ..recording.recorder import Recorder
from ..recording.snapshot import snapshot
from .checks import Check, Figures, expect
from .groups import carriers
from .lanes import make_plan
from .site import Site

MOST_OF_A_SNAPSHOT = 32 << 20  # bytes beside the recorder's own
SPARE_SLOTS, BATCH = 32, 8192
Part = TypeVar("Part")


class Shape(NamedTuple):
    """expert_bytes: one expert's weights and scales in one layer, in FP8."""

    layers: int
    experts: int
    top_k: int
    expert_bytes: int


EXPERT = 3 * 7168 * 2048
SHAPES = {
    "DeepSeek-V3": Shape(58, 256, 8, EXPERT + EXPERT // 128**2 * 4),
    "Kimi-K2": Shape(60, 384, 8, EXPERT + EXPERT // 128**2 * 4),
}


def check_memory(site: Site) -> Figures:
    """As one rank of 8, or of as many as there are: each part's allocations against the size that it states."""
    ranks = dist.get_world_size() if dist.get_world_size() > 1 else 8
    figures: Figures = {}
    for name, shape in SHAPES.items():
        some = shape if site.full else Shape(4, 64, 3, 1 << 14)
        slots = -(-(some.experts + SPARE_SLOTS) // ranks)
        found = _parts(site, some, slots)
        held = sum(found.values())
        figures |= {f"{what}, {name} on {ranks} ranks": value for what, value in found.items()}
        figures[f"weights, {name} on {ranks} ranks"] = some.layers * slots * some.expert_bytes
        if site.free is not None:
            figures["free"] = site.free
            expect(f"memory of {name}", held < site.free, found=f"{site.free} bytes free", expected=f"{held} or more")
    return figures


def _parts(site: Site, shape: Shape, slots: int) -> dict[str, int]:
    """Bytes of the device by part. Raises PluginError where one takes other memory than it says."""
    rng, found = np.random.default_rng(0), {}
    plan = make_plan(rng, "cover", layers=shape.layers, experts=shape.experts, nodes=1, spare=SPARE_SLOTS)
    sizes = shape.layers, shape.experts, shape.top_k, site.pick(BATCH, 64), site.pick(BATCH, 16)
    recorder, found["recorder"] = _measure(site, lambda: Recorder(*sizes, site.device))
    expect_size(site, "recorder", found["recorder"], recorder.nbytes())
    tables, found["tables"] = _measure(site, lambda: DispatchTables(plan, [0], site.device))
    expect_size(site, "tables", found["tables"], tables.nbytes())
    for name, group, _ in carriers(site):
        rows = [fake_rows(site.device, slots, shape.expert_bytes)]
        wires, found[f"staging over {name}"] = _measure(site, partial(GroupWires, group, rows, Budget()))
        here = wires.staging.device.type == site.device.type
        expect_size(site, f"staging over {name}", found[f"staging over {name}"], wires.nbytes if here else 0)
    window = list(range(shape.layers))
    peak = site.memory(lambda: snapshot(recorder, carriers(site)[-1].rows, 1, window))
    most = f"at most {MOST_OF_A_SNAPSHOT} bytes"
    expect("memory of a snapshot", peak <= MOST_OF_A_SNAPSHOT, found=peak, expected=most)
    return found | {"snapshot": peak}


def _measure(site: Site, make: Callable[[], Part]) -> tuple[Part, int]:
    made: list[Part] = []
    peak = site.memory(lambda: made.append(make()))
    return made[0], peak


def expect_size(site: Site, what: str, found: int, stated: int) -> None:
    fits = abs(found - stated) <= site.pick(1 << 20, 1 << 13)  # what an allocator may add
    expect(f"{what}: bytes allocated", fits, found=found, expected=f"{stated}, which it states")


def fake_rows(device: torch.device, slots: int, expert_bytes: int) -> ExpertRows:
    """Of a layer that has one expert's memory only."""
    words = -(-expert_bytes // 16) * 2
    matrix = torch.zeros(1, words, dtype=torch.int64, device=device).expand(slots, words)
    return ExpertRows((matrix,), (0,), 8 * (words + SEAL_WORDS), expert_bytes, "one expert's memory")


MEMORY = Check(
    "memory", "Recording, tables and staging take the memory that they state at the sizes of real models", check_memory
)
