"""Check: compilers of forward passes take the plugin's operators whole (SGLang's path)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..dispatch import torch_ops
from .checks import Check, Figures, expect_equal
from .lanes import HOST, Lane, make_ids, make_plan
from .site import Site


def check_compiled(site: Site) -> Figures:
    rng, experts, top_k, layers = np.random.default_rng(0), site.pick(256, 9), site.pick(8, 3), 3
    plan = make_plan(rng, "cover", layers=layers, experts=experts, nodes=4, spare=4)
    there, here = (Lane(plan, device, top_k=top_k, max_tokens=512) for device in (site.device, HOST))
    phy2log = torch.from_numpy(plan.placement.phy2log[0]).to(site.device)
    ids = torch.from_numpy(make_ids(rng, 17, experts, top_k)).to(site.device)
    for name, tables in {
        "cover": there.tables.layer(0), "look_up": [there.tables.rows[0]], "record": [phy2log]
    }.items():  # fmt: skip
        operator = getattr(torch.ops.eplb_plugin, name).default
        torch.library.opcheck(operator, (ids, *tables, *there.counters(0)))
    there.recorder.drop()
    there.slot_load.zero_()
    compiled = _compiled(site)
    with torch.inference_mode():
        for tokens in (19, 11, 3, 19):
            made = torch.from_numpy(make_ids(rng, tokens, experts, top_k))
            for lane in (there, here):
                lane.set(tokens - 2)
            for layer in range(layers):
                slots = compiled(made.to(site.device), there.tables.layer(layer), there.counters(layer)).clone()
                expect_equal(f"{tokens} tokens, compiled: slots", slots, here.map(made, layer))
            there.equals(f"{tokens} tokens, compiled", here)
            for lane in (there, here):
                lane.recorder.fold()
    return {"operators": 3}


def _compiled(site: Site) -> Callable[..., Any]:
    """fullgraph: an error if the compiler would leave the graph anywhere."""
    if site.graphs:
        return torch.compile(torch_ops.cover, fullgraph=True, dynamic=True, mode="reduce-overhead")
    return torch.compile(torch_ops.cover, fullgraph=True, dynamic=True, backend="aot_eager")


COMPILED = Check(
    "operators",
    "Each operator does what its schema declares, and torch.compile takes it whole, in graphs",
    check_compiled,
)
