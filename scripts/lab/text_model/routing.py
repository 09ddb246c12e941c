"""Which experts the trained model chooses, and figures of it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3MoeForCausalLM

from eplb_plugin import RoutingStatistics

from .statistics import lift, moved

ATONCE = 8  # sequences in one forward pass


@torch.no_grad()
def read(model: Qwen3MoeForCausalLM, sequences: torch.Tensor) -> tuple[NDArray[np.uint8], float]:
    """Read sequences [sequences, length] -> (experts [layers, sequences * length, k], loss in nats per token)."""
    chosen, loss = [], 0.0
    for part in sequences.split(ATONCE):
        output = model(part, labels=part, output_router_logits=True)
        k = model.config.num_experts_per_tok
        chosen.append(torch.stack([logits.topk(k).indices for logits in output.router_logits]))
        # without the auxiliary loss, which transformers has added
        loss += float(output.loss - model.config.router_aux_loss_coef * output.aux_loss) * len(part)
    return torch.cat(chosen, 1).numpy().astype(np.uint8), loss / len(sequences)


def sequences_of(tokens: torch.Tensor, count: int, length: int, skip: int = 0) -> torch.Tensor:
    """[count, length], side by side from sequence number `skip` on; fewer where the text ends."""
    count = min(count, len(tokens) // length - skip)
    return tokens[skip * length : (skip + count) * length].reshape(count, length)


def figures(model: Qwen3MoeForCausalLM, held_out: dict[str, torch.Tensor], sequences: int = 12) -> dict[str, Any]:
    """What held-out text of every kind says of the model: loss, load, co-activation, and how kinds differ."""
    length = 256
    found = {kind: read(model, sequences_of(tokens, sequences, length)) for kind, tokens in held_out.items()}
    experts = model.config.num_experts
    of_kind = {kind: RoutingStatistics.from_topk(ids, experts) for kind, (ids, _) in found.items()}
    every = RoutingStatistics.from_topk(np.concatenate([ids for ids, _ in found.values()], 1), experts)
    return {
        "held_out_loss": {kind: loss for kind, (_, loss) in found.items()},
        "max_over_mean_load": _peak(every),
        "max_over_mean_load_of_kind": {kind: _peak(window) for kind, window in of_kind.items()},
        "coactivation_lift": lift(every).tolist(),
        "load_moved_between_kinds": {
            f"{one}, {other}": float(moved(of_kind[one], of_kind[other]).mean())
            for one, other in combinations(of_kind, 2)
        },
    }


def _peak(window: RoutingStatistics) -> list[float]:
    return (window.load.max(1) / window.load.mean(1)).tolist()


def show(found: dict[str, Any]) -> str:
    between = found["load_moved_between_kinds"]
    least, most = min(between, key=between.__getitem__), max(between, key=between.__getitem__)
    layers = "  ".join
    return "\n".join(
        [
            "held-out loss, nats per token: " + ", ".join(f"{k} {v:.2f}" for k, v in found["held_out_loss"].items()),
            "max / mean load of experts, layer by layer: " + layers(f"{v:.2f}" for v in found["max_over_mean_load"]),
            "co-activation over what loads alone give:   " + layers(f"{v:.2f}" for v in found["coactivation_lift"]),
            f"selections on other experts: {between[least]:.0%} ({least}) to {between[most]:.0%} ({most})",
        ]
    )
