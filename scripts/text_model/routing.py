"""Which experts the trained model chooses, and figures of it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3MoeForCausalLM

from eplb_plugin import RoutingStatistics

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
    loads = {kind: RoutingStatistics.from_topk(ids, experts).load for kind, (ids, _) in found.items()}
    every = RoutingStatistics.from_topk(np.concatenate([ids for ids, _ in found.values()], 1), experts)
    return {
        "held_out_loss": {kind: loss for kind, (_, loss) in found.items()},
        "max_over_mean_load": (every.load.max(1) / every.load.mean(1)).tolist(),
        "max_over_mean_load_of_kind": {kind: (load.max(1) / load.mean(1)).tolist() for kind, load in loads.items()},
        "coactivation_lift": lift(every).tolist(),
        "load_moved_between_kinds": {
            f"{one}, {other}": float(np.mean(_moved(loads[one], loads[other]))) for one, other in combinations(loads, 2)
        },
    }


def lift(statistics: RoutingStatistics) -> NDArray[np.float64]:
    """[layers]: how often a token's pair of experts is met, over what loads alone would have; mean over pairs met.

    1 = experts are chosen independently. It is 1 + chi² / pairs of the table of pairs.
    """
    assert statistics.coactivation is not None
    above = np.triu_indices(statistics.num_experts, 1)
    lifts = []
    for load, pairs in zip(statistics.load.astype(float), statistics.coactivation.astype(float), strict=True):
        met, alone = pairs[above], np.outer(load, load)[above]
        alone = np.maximum(alone * met.sum() / alone.sum(), 1e-9)
        lifts.append((met * met / alone).sum() / met.sum())
    return np.array(lifts)


def _moved(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """[layers]: share of the selections that go to other experts (total variation distance of two loads)."""
    shares = [load / load.sum(1, keepdims=True) for load in (one, other)]
    return np.abs(shares[0] - shares[1]).sum(1) / 2


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
