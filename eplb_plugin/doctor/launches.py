"""Check: the Triton kernel, compiled for this device, maps and counts as the host's loops do."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ..dispatch import kernels
from ..plan_types import Dispatch
from .checks import Check, Figures, expect_equal
from .lanes import HOST, UNBOUNDED, Lane, make_ids, make_plan
from .site import Site

Value = TypeVar("Value")
TASKS = ("cover", "look up", "record", "record slots")
MAX_TOKENS = 512  # of the recorder: longer batches are mapped whole, and recorded up to here


class Case(NamedTuple):
    """strided: ids are every second column of a wider tensor. real: tokens that are no padding, of a batch cut in two
    chunks of which this rank has the first or the second.
    """

    tokens: int
    top_k: int
    experts: int
    nodes: int
    dtype: torch.dtype
    strided: bool
    real: int
    chunk: int


def cases(site: Site) -> list[Case]:
    """Not every combination, for each takes a compilation: every value of every column, several times."""
    rng, count = np.random.default_rng(0), site.pick(16, 3)

    def drawn(*values: Value) -> list[Value]:
        return [values[place % len(values)] for place in rng.permutation(count)]

    tokens = drawn(*((0, 1, 7, 17, 128, 513, 8192, 16385) if site.full else (0, 1, 17)))
    real = [(UNBOUNDED, 0, count // 2, count + count // 2)[number % 4] for number, count in enumerate(tokens)]
    columns = zip(
        tokens,
        drawn(*((1, 2, 4, 6, 8, 10, 22) if site.full else (1, 3, 6))),
        drawn(*((60, 128, 256, 384, 512) if site.full else (9,))),
        drawn(*((1, 2, 16, 31, 33, 62) if site.full else (1, 2, 5))),
        drawn(torch.int32, torch.int64, torch.uint32),
        drawn(False, True),
        real,
        drawn(0, 1),
        strict=True,
    )
    return [Case(*column) for column in columns]


class Trial:
    """One task of the kernel in one case, on the device and on the host."""

    def __init__(self, site: Site, case: Case, task: str, rng: np.random.Generator) -> None:
        self.site, self.case, self.task, self.rng = site, case, task, rng
        dispatch: Dispatch = "cover" if task == "cover" else "weighted"
        self.plan = make_plan(rng, dispatch, layers=1, experts=case.experts, nodes=case.nodes, spare=8)
        self.there, self.here = (
            Lane(self.plan, device, top_k=case.top_k, max_tokens=MAX_TOKENS, source=case.nodes - 1, chunk=case.chunk)
            for device in (site.device, HOST)
        )
        self.maps = task in ("cover", "look up")
        self.phy2log = torch.from_numpy(self.plan.placement.phy2log[0]) if task == "record slots" else None
        self._way: dict[str, Any] = {"cover": {"tables": self.there.tables.layer(0)}}.get(task, {})
        if task == "look up":
            self._way = {"rows": self.there.tables.rows[0]}
        elif self.phy2log is not None:
            self._way = {"phy2log": self.phy2log.to(site.device)}

    def run(self, what: str, streams: int = 1, **counted: bool) -> None:
        """The same ids on so many streams at once, then on the host. Raises PluginError where anything differs.

        counted: what `Lane.set` takes.
        """
        from ..dispatch.triton_kernels import launch

        host, device = self._ids()
        for lane in (self.there, self.here):
            lane.set(self.case.real, **counted)
        slots = [torch.empty(host.shape, dtype=host.dtype, device=self.site.device) for _ in range(streams)]
        counters = self.there.counters(0)
        self.site.beside(*(partial(launch, device, out if self.maps else None, counters, **self._way) for out in slots))
        for out in slots:
            if self.maps:
                expect_equal(f"{what}: slots", out, self.here.map(host, 0))
            else:
                kernels.record(host, self.here.counters(0), self.phy2log)
        self.there.equals(what, self.here)
        for lane in (self.there, self.here):
            lane.recorder.fold()
        self.there.equals(f"{what}, folded", self.here)

    def _ids(self) -> tuple[torch.Tensor, torch.Tensor]:
        case = self.case
        ids = make_ids(self.rng, case.tokens, case.experts, case.top_k)
        if self.phy2log is not None:
            ids = np.where(ids >= 0, self.plan.placement.log2phy[0, ids, 0], -1)
        wide = torch.from_numpy(ids.repeat(2, axis=1)).to(case.dtype)
        there = wide.to(self.site.device)
        pair = wide[:, ::2], there[:, ::2]
        return pair if case.strided else (pair[0].contiguous(), pair[1].contiguous())


def check_launches(site: Site) -> Figures:
    """Every task in every case: in a window, in one of loads alone, outside, and on two streams at once."""
    site.refuse_no_triton()
    made = cases(site)
    for number, case in enumerate(made):
        for task in TASKS:
            trial = Trial(site, case, task, np.random.default_rng(number))
            what = f"case {number}, {task}: {case}"
            trial.run(what)
            trial.run(what, pairs=False)
            trial.run(what, load=False)
            trial.run(what, streams=2, slots=False)
    return {"cases": len(made), "tasks": len(TASKS)}


LAUNCHES = Check(
    "kernel", "The Triton kernel maps and counts as the host's loops do, bit for bit, in all its tasks", check_launches
)
