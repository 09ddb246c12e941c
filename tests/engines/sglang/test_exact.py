"""`exact` among SGLang's own schedulers, routers and groups: every large step is `route_step`, whoever is idle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sglang.srt.layers.dp_attention import set_dp_buffer_len, set_is_extend_in_batch

from eplb_plugin import Placement, route_step
from eplb_plugin.engines.sglang.exact import largest_batch
from eplb_plugin.planning.planner import plan_of
from processes import run_ranks

from .lives import EXPERTS, TOP_K
from .schedulers import MOE_LAYERS, Scheduler, Start, model_folder

RANKS, LARGE, MAPS = 2, 8, 8
SETTINGS = {"topology": {"nodes": 2}, "sample_rows": 256, "dispatch": "cover", "exact": {"min_tokens": LARGE},
            "migration": {"vote_seconds": 60}}  # fmt: skip
DEEPEP = {"moe_a2a_backend": "deepep", "deepep_mode": "normal", "enable_dp_attention": True, "dp_size": RANKS}


class Block(torch.nn.Module):
    """Asks its router as SGLang's models do: for nothing where there is nothing."""

    def __init__(self, router: torch.nn.Module) -> None:
        super().__init__()
        self.topk = router

    def forward(self, logits: torch.Tensor) -> Any:
        if len(logits) == 0:
            return self.topk.empty_topk_output(logits.device)
        return self.topk(torch.zeros(len(logits), 32), logits)


class Evened(Scheduler):
    def _model(self) -> Any:
        model = super()._model()
        model.blocks, model.routers = torch.nn.ModuleList([Block(one) for one in model.routers]), None
        return model

    def step(self, ids: np.ndarray, told: list[int], prompts: bool) -> np.ndarray:
        """A pass. ids: [layers, T, K] of this rank; told: what `prepare_mlp_sync_batch` publishes -> slots."""
        set_is_extend_in_batch(prompts)
        set_dp_buffer_len(sum(told), ids.shape[1], False, told)
        slots = []
        with self.running(ids.shape[1]):
            for block, layer, chosen in zip(self.model.blocks, MOE_LAYERS, ids, strict=True):
                logits = torch.zeros(ids.shape[1], EXPERTS).scatter_(1, torch.from_numpy(chosen), 5.0)
                with self.recorder.with_current_layer(layer):
                    slots.append(block(logits).topk_ids.numpy().copy())
                    self._report_dispatch(torch.from_numpy(slots[-1]))
        self.manager.on_forward_pass_end()
        return np.stack(slots)


def batch(rank: int, step: int, shared: bool) -> tuple[np.ndarray, list[int], bool]:
    """What a rank routes, how many tokens each has, and whether any of them has a prompt."""
    random = np.random.default_rng(step)
    told = [int(random.choice([0, 1, LARGE - 1, LARGE, 30])) for _ in range(RANKS)]
    tokens = told[0] if shared else told[rank]
    own = np.random.default_rng([0 if shared else rank, step]).random((len(MOE_LAYERS), tokens, EXPERTS))
    return np.argsort(own * np.linspace(0.2, 1, EXPERTS), axis=2)[:, :, :TOP_K], told, bool(random.integers(3))


def even_out(start: Start, shared: bool) -> tuple[int, int, int]:
    """Steps until experts have moved often; how many layers were evened out, how many should have been, and in how many
    of these one of the ranks was idle."""
    from eplb_plugin.engines import exchange
    from eplb_plugin.engines.sglang.state import get_adapter

    scheduler = Evened(start)
    adapter, choose, evened, wanted, idle = get_adapter(), exchange.choose, 0, 0, 0
    entry, maps = adapter.rebalancer.entries["target"], set()

    def checked(ids: Any, layer: Any, gathered: Any, counters: Any) -> Any:
        nonlocal evened
        found, everywhere, choices = choose(ids, layer, gathered, counters), [None] * RANKS, [None] * RANKS
        dist.all_gather_object(everywhere, ids.numpy())
        dist.all_gather_object(choices, found.numpy())
        owners = np.repeat(np.arange(RANKS), [len(one) for one in everywhere])
        placed = scheduler.metadata.physical_to_logical_map_cpu.numpy()[MOE_LAYERS].astype(np.int32)
        now = plan_of(Placement(placed), entry.topology, "cover")
        expected = route_step(np.concatenate(everywhere), owners, now, evened % len(MOE_LAYERS))
        np.testing.assert_array_equal(found, choices[0] if shared else expected[owners == scheduler.rank])
        evened += 1
        return found

    exchange.choose = checked
    for step in range(3000):
        ids, told, prompts = batch(scheduler.rank, step, shared)
        scheduler.step(ids, told, prompts)
        large = told[0] >= LARGE if shared else prompts and max(told) >= LARGE
        wanted += len(MOE_LAYERS) * large
        idle += len(MOE_LAYERS) * (large and 0 in told)
        maps.add(scheduler.metadata.physical_to_logical_map_cpu.numpy().tobytes())
        if len(maps) >= MAPS:
            break
        time.sleep(0.002)
    assert scheduler.weights_are_right()
    return evened, wanted, idle


@pytest.mark.parametrize("shared", [False, True], ids=["DeepEP, data-parallel attention", "no all-to-all"])
def test_large_steps_are_even_while_experts_move(shared: bool, tmp_path: Path) -> None:
    """By the placement that serves them, also between the layers of a migration and where a rank has no token; steps
    without a prompt, and small ones, follow the tables where ranks exchange."""
    start = Start(model_folder(tmp_path), [SETTINGS] * RANKS, {} if shared else DEEPEP)
    found = run_ranks(RANKS, even_out, start, shared, timeout=400)
    evened, wanted, idle = found[0]
    assert found[1] == found[0]
    assert evened == wanted > 10 * len(MOE_LAYERS)
    assert shared or idle > len(MOE_LAYERS)


@pytest.mark.parametrize(
    ("told", "prompts", "shared", "largest"),
    [([3, 9], True, False, 9), ([3, 9], False, False, 0), (None, True, False, 0), ([3, 9], False, True, 5)],
)
def test_the_number_that_ranks_decide_by(
    told: list[int] | None, prompts: bool, shared: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest batch of any rank, in steps with a prompt; where every rank routes every token, the batch."""
    monkeypatch.setattr("eplb_plugin.engines.sglang.exact.get_dp_global_num_tokens", lambda: told)
    monkeypatch.setattr("eplb_plugin.engines.sglang.exact.get_is_extend_in_batch", lambda: prompts)
    assert largest_batch(torch.zeros(5, TOP_K), shared) == largest
