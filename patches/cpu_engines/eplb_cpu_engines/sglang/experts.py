"""The plain torch experts under expert parallelism: choices whose expert is on another rank are marked with -1, and the
stock function, which counts choices by expert, fails on the first of them.

It is given the local (token, choice) pairs alone, each as a token with one choice, and its outputs are summed by token.
"""

from collections.abc import Callable

import torch
from sglang.srt.layers.moe import fused_moe_native as target
from sglang.srt.layers.moe.topk import StandardTopKOutput

from ..patching import replace


def install() -> bool:
    replace(target, "moe_forward_native", "layer, x, topk_output, moe_runner_config", _only_local_experts)
    return True


def _only_local_experts(original: Callable) -> Callable:
    def moe_forward_native(
        layer: torch.nn.Module, x: torch.Tensor, topk_output: StandardTopKOutput, moe_runner_config: object
    ) -> torch.Tensor:
        """x: [tokens, hidden]; topk_output: weights and local ids [tokens, k], -1 = not here; returns x's shape."""
        ids = topk_output.topk_ids
        if (ids >= 0).all():
            return original(layer, x, topk_output, moe_runner_config)
        output = torch.zeros_like(x)
        tokens, choices = (ids >= 0).nonzero(as_tuple=True)
        if len(tokens):
            pairs = StandardTopKOutput(
                topk_output.topk_weights[tokens, choices, None], ids[tokens, choices, None], topk_output.router_logits
            )
            output.index_add_(0, tokens, original(layer, x[tokens], pairs, moe_runner_config))
        return output

    return moe_forward_native
