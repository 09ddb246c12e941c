"""Checks: experts change places under a forward pass that is replayed, by the plugin's own Shuffler."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch.distributed as dist

from ..migration.shuffle import Shuffler
from ..topology import Topology
from .checks import Check, Figures, expect
from .groups import carriers
from .model import Model
from .site import Site


def check_moves(site: Site) -> Figures:
    """Any placement becomes any other on the ranks of the default group, over every carrier that there is."""
    figures: Figures = {}
    for name, data, votes in carriers(site):
        figures |= {f"{what}, {name}": value for what, value in migrate(site, data, votes, name).items()}
    return figures


def migrate(site: Site, data: dist.ProcessGroup, votes: dist.ProcessGroup, name: str) -> Figures:
    """Random permutations, and one of a few slots of the first two ranks, in which the others have no part."""
    rank, size = dist.get_rank(data), dist.get_world_size(data)
    layers, slots = site.pick(3, 2), site.pick(36, 6) if size == 1 else site.pick(9, 3)
    rng, topology = np.random.default_rng(0), Topology(1, size, slots)
    experts = size * slots * 8 // 9
    start = np.stack([rng.permutation(np.arange(size * slots) % experts) for _ in range(layers)]).astype(np.int32)
    model = Model(site, start, slice(rank * slots, (rank + 1) * slots))
    model.check(f"{name}: before any move")
    shuffler = Shuffler(model.rows, topology, data=data, votes=votes, switch=model.switch)
    watch = nullcontext if shuffler.wires.background else site.no_waits  # a thread beside the engine's may wait
    steps = 0
    for turn in range(site.pick(5, 2)):
        few = turn % 2 == 0 and size > 1
        new = _swapped(model.phy2log, slots) if few else rng.permuted(model.phy2log, axis=1)
        shuffler.begin(model.phy2log.copy(), new)
        going = True
        while going:
            with watch():
                going = shuffler.step()
            steps += 1
            model.check(f"{name}: step {steps}")
        expect(f"{name}: migration {turn}", not shuffler.refusal, found=f"refused: {shuffler.refusal}", expected="done")
        model.check(f"{name}: after migration {turn}")
        expect(f"{name}: maps", bool((model.phy2log == new).all()), found="others", expected="those of the plan")
    return {"steps": steps, "staging bytes": shuffler.wires.nbytes, "row bytes": model.rows[0].row_bytes}


def _swapped(phy2log: np.ndarray, slots: int) -> np.ndarray:
    """The first two ranks exchange one expert of the last layer."""
    new = phy2log.copy()
    new[-1, [0, slots]] = new[-1, [slots, 0]]
    return new


MOVES = Check(
    "moves",
    "Experts change places in steps between replays of a pass that reads them; bytes fit the maps at each",
    check_moves,
)
