"""Routing of recorded tokens, asked for through SGLang's own simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from eplb_plugin.engines.settings import REPLAY
from processes import run_ranks

TOP_K, EXPERTS = 4, 32
ROWS = np.stack([np.arange(8)[:, None] + [0, 8, 16, 24], np.arange(8)[:, None] + [16, 0, 8, 24]])


def routed(path: str) -> dict[str, Any]:
    """What SGLang's own choice of experts gives two layers under the setting, twice; then with a fused shared expert
    and padding.
    """
    import torch
    from sglang.srt.layers.moe import topk
    from sglang.srt.plugins.hook_registry import HookRegistry

    from eplb_plugin.engines.sglang import register

    os.environ[REPLAY] = f"trace={path},answers=1"
    register()
    HookRegistry.apply_hooks()
    config = topk.TopKConfig(top_k=TOP_K, renormalize=True, torch_native=True)
    hidden, logits = torch.zeros(5, 8), torch.rand(5, EXPERTS)
    found: dict[str, Any] = {"ids": [], "weights": []}
    for _ in range(2):
        for layer in (3, 4):
            output = topk.select_experts(hidden, logits, config, layer_id=layer)
            found["ids"].append(output.topk_ids.tolist())
            found["weights"].append(output.topk_weights.tolist())
    ids, weights = torch.full((3, TOP_K + 1), 40, dtype=torch.int32), torch.full((3, TOP_K + 1), 0.5)
    topk.apply_routing_simulation(
        ids, weights, EXPERTS, num_routed_topk=TOP_K, top_k=TOP_K + 1, layer_id=3,
        num_token_non_padded=torch.tensor(2), weight_scale=2.0,
    )  # fmt: skip
    return found | {"shared": (ids.tolist(), weights.tolist())}


def test_every_layer_deals_its_own_recorded_rows(tmp_path: Path) -> None:
    """In place of its own even ones; shared experts keep their column, and padding is none."""
    np.savez(tmp_path / "a.npz", topk_ids=ROWS, num_experts=EXPERTS)
    (found,) = run_ranks(1, routed, str(tmp_path / "a.npz"), timeout=120.0)
    turns = [ROWS[layer][(begin + np.arange(5)) % 8].tolist() for begin in (0, 5) for layer in (0, 1)]
    assert found["ids"] == turns
    assert np.array(found["weights"]).tolist() == np.full((4, 5, TOP_K), 1 / TOP_K).tolist()
    ids, weights = found["shared"]
    assert ids == [[*ROWS[0, 2], 40], [*ROWS[0, 3], 40], [-1, -1, -1, -1, 40]]
    assert weights == [[0.5] * 5, [0.5] * 5, [0.0, 0.0, 0.0, 0.0, 0.5]]


def test_a_bad_one_ends_the_process_with_one_line() -> None:
    """SGLang would only log what a plugin raises."""
    code = "from eplb_plugin.engines.sglang import register; register()"
    environment = os.environ | {REPLAY: "trace=/missing.npz"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("eplb-plugin: ")]
    assert "/missing.npz: cannot be read" in line
