"""Checks of several ranks: votes have one verdict, and windows are summed exactly."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from ..migration.votes import PLANNING, Vote, Votes
from ..recording.snapshot import snapshot
from .checks import Check, Figures, expect, expect_equal
from .groups import PATIENCE, carriers
from .lanes import HOST, Lane, make_ids, make_plan
from .site import Site, Skipped


def check_votes(site: Site) -> Figures:
    """All say yes; one plans still; one has another digest; one refuses: every rank must learn the same."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if size == 1:
        raise Skipped("needs two ranks")
    votes, last = Votes(group, PATIENCE.total_seconds()), rank == size - 1
    yes = Vote(staged=2, digest=7, healthy=True, intact=True, idle=True)
    cases = {
        "yes": (yes, 2, ""),
        "plan to make": (replace(yes, staged=PLANNING, digest=None), PLANNING, ""),
        "other digest": (replace(yes, digest=8), 2, "ranks were given different placements, tensors or budgets"),
        "refusal": (replace(yes, healthy=False), 2, f"rank {size - 1} refused"),
    }
    for name, (other, staged, refused) in cases.items():
        votes.send(other if last else yes)
        verdict = votes.count()
        expected = staged, refused
        found = verdict.staged, verdict.refused
        expect(f"vote with one rank's {name}", found == expected, found=found, expected=expected)
    began, rounds = time.perf_counter(), 100
    for _ in range(rounds):
        votes.send(yes)
        votes.count()
    spent = time.perf_counter() - began
    dist.destroy_process_group(group)
    return {"us a vote": round(spent / rounds * 1e6), "ranks": size}


def check_windows(site: Site) -> Figures:
    """Every rank records other tokens; the first gets the sum of all, over the device's group."""
    layers, experts, top_k, tokens = site.pick(58, 2), site.pick(256, 9), site.pick(8, 3), site.pick(512, 8)
    name, group, _ = carriers(site)[-1]
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    plan = make_plan(np.random.default_rng(0), "weighted", layers=layers, experts=experts, nodes=1, spare=1)
    there = Lane(plan, site.device, top_k=top_k, max_tokens=tokens)
    here = Lane(plan, HOST, top_k=top_k, max_tokens=tokens)  # what all ranks recorded together
    for owner in range(size):
        ids = torch.from_numpy(make_ids(np.random.default_rng(owner), tokens, experts, top_k))
        for lane in (there, here) if owner == rank else (here,):
            _record(lane, ids)
    began = time.perf_counter()
    window = snapshot(there.recorder, group, 1, list(range(layers)))
    spent = time.perf_counter() - began
    if window is not None:
        what = f"window over {name}"
        totals = np.concatenate([window.load, window.num_tokens[:, None], window.left_out[:, None]], axis=1)
        expect_equal(f"{what}: totals", torch.from_numpy(totals), here.recorder.totals.long())
        assert window.coactivation is not None
        once = here.recorder.pairs[:, :-1, :-1].long()
        expect_equal(f"{what}: pairs", torch.from_numpy(window.coactivation), once + once.triu(1).transpose(1, 2))
    return {f"ms of a window, {name}": round(spent * 1e3, 1)}


def _record(lane: Lane, ids: torch.Tensor) -> None:
    lane.set(len(ids))
    for layer in range(lane.layers):
        lane.map(ids.to(lane.slot_load.device), layer)
    lane.recorder.fold()


VOTES = Check(
    "votes", "Every rank learns the same verdict, whichever rank plans still, differs or refuses", check_votes
)
WINDOWS = Check("windows", "One rank gets the sum of what all recorded, exactly", check_windows)
