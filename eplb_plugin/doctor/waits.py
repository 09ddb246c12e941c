"""Checks: what an engine's thread calls in every step never waits for the device, and what a wait on NCCL costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from ..dispatch.cover import cover_maps
from ..dispatch.kernels import upload
from ..recording.load import Arrived, take_load
from .checks import Check, Figures, expect, expect_equal
from .groups import carriers
from .lanes import Lane, make_ids, make_plan
from .site import Site, Skipped

SPUN = 0.2  # seconds that a stream is kept busy


def check_waits(site: Site) -> Figures:
    rng = np.random.default_rng(0)
    layers, experts, top_k, tokens = site.pick(58, 3), site.pick(256, 9), site.pick(8, 3), site.pick(512, 8)
    old, new = (make_plan(rng, "cover", layers=layers, experts=experts, nodes=4, spare=4) for _ in range(2))
    lane, every = Lane(old, site.device, top_k=top_k, max_tokens=tokens), list(range(layers))
    target = torch.zeros(layers, experts, dtype=torch.int32, device=site.device)
    source, maps = torch.randint(0, 9, (layers, experts), dtype=torch.int32), cover_maps(new, every)
    ids = torch.from_numpy(make_ids(rng, tokens, experts, top_k))
    lane.recorder.stage.copy_(ids.to(torch.int16).expand(lane.recorder.stage.shape))
    lane.recorder.passing(0).load.fill_(3)
    site.synchronize()
    tables, taken = lane.tables.cover, list[Arrived]()
    assert tables is not None
    calls: dict[str, Callable[[], object]] = {
        "expect": lambda: lane.recorder.expect([tokens]),
        "what is counted": lambda: lane.recorder.count(True, pairs=True),
        "fold": lane.recorder.fold,
        "drop": lane.recorder.drop,
        "new tables": lambda: tables.put(maps, every),
        "upload": lambda: upload(source, target, every),
        "load of a window": lambda: taken.append(take_load(lane.recorder)),
    }
    figures: Figures = {}
    for name, call in calls.items():
        began = time.perf_counter()
        with site.no_waits():
            call()
        figures[f"host us, {name}"] = round((time.perf_counter() - began) * 1e6)
    site.synchronize()
    expect_equal("uploaded rows", target, source)
    expected = torch.zeros(layers, experts + 2, dtype=torch.int64)
    expected[0] = 3
    expect_equal("load of the window", taken[0](), expected.ravel())
    return figures


WAITS = Check(
    "waits", "Folding, dropping, new tables, uploads and taking a window's load never wait for the device", check_waits
)


def check_wait_costs(site: Site) -> Figures:
    """A message is given to a busy stream: `wait()` must only order streams; with a timeout, the host polls."""
    figures: Figures = {}
    for name, group, _ in carriers(site):
        if name == "gloo":
            continue  # works on the host
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        sent = torch.full((1 << 20,), rank, dtype=torch.int64, device=site.device)
        received = torch.empty_like(sent)
        for timeout in (None, None, timedelta(seconds=30)):  # the first makes the connection
            site.spin(SPUN)
            ops = [
                dist.P2POp(dist.isend, sent, group=group, group_peer=(rank + 1) % size),
                dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - 1) % size),
            ]
            works = dist.batch_isend_irecv(ops)
            began = time.perf_counter()
            for work in works:
                work.wait() if timeout is None else work.wait(timeout)
            figures[f"host ms of wait({'timeout' if timeout else ''}), {name}"] = (time.perf_counter() - began) * 1e3
            site.synchronize()
            expect_equal("a message to the next rank", received, torch.full_like(received, (rank - 1) % size))
        spent = figures[f"host ms of wait(), {name}"]
        expect("wait() on a busy stream", spent < 500 * SPUN, found=f"{spent:.0f} ms", expected="no wait on the host")
    if not figures:
        raise Skipped("needs NCCL")
    return figures


WAIT_COSTS = Check(
    "wait costs", "Waiting for a message on NCCL orders streams and does not hold the host up", check_wait_costs
)
