"""The experts of one rank: vLLM's CPU kernel takes global expert ids for rows of the local weights, and crashes.

The local (token, expert) pairs are picked out, and the stock kernel is called on them as tokens with one expert each.
The work is thus proportional to the rank's real load, which is what makes imbalance visible on a CPU.
"""

import inspect
from collections.abc import Callable

import torch
import vllm.model_executor.layers.fused_moe.experts.cpu_moe as target

from ..patching import replace, require

_PARAMETERS = (
    "self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map, "
    "a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta, apply_router_weight_on_input"
)


def install() -> None:
    replace(target.CPUUnquantizedExperts, "apply", _PARAMETERS, _only_local_experts)


def _only_local_experts(original: Callable) -> Callable:
    signature = inspect.signature(original)

    def apply(*args, **kwargs):
        call = signature.bind(*args, **kwargs).arguments
        if call["expert_map"] is None:  # every expert is here
            original(*args, **kwargs)
        else:
            apply_local(**call)

    return apply


def apply_local(
    self: target.CPUUnquantizedExperts,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: target.MoEActivation,
    expert_map: torch.Tensor,
    apply_router_weight_on_input: bool,
    **_unused: object,
) -> None:
    """The sum of the local experts' outputs for each token, written to `output`: [tokens, hidden].

    hidden_states: [tokens, hidden]; topk_weights, topk_ids: [tokens, k], physical ids;
    w1: [local, 2 * intermediate, hidden] and w2: [local, hidden, intermediate], as the kernel packed them;
    expert_map: [physical], the local row or -1.
    """
    require("the stock CPU kernel", "zentorch's kernel" if self._use_zentorch else "the stock CPU kernel")
    output.zero_()
    pairs, rows = local_pairs(topk_ids, expert_map)
    if pairs.numel() == 0:
        return
    tokens = pairs // topk_ids.shape[1]
    pair_input = hidden_states[tokens]
    pair_output = torch.empty_like(pair_input)
    pair_weights = topk_weights.flatten()[pairs, None].float()
    target.cpu_fused_moe(
        pair_output, pair_input, w1, w2, self.w1_bias, self.w2_bias, pair_weights, rows[:, None].int(),
        activation.value, self.isa, apply_router_weight_on_input,
    )  # fmt: skip
    output.index_add_(0, tokens, pair_output)


def local_pairs(topk_ids: torch.Tensor, expert_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The (token, choice) pairs whose expert is here: their positions in topk_ids.flatten(), and their local rows."""
    rows = expert_map[topk_ids.long()].where(topk_ids >= 0, -1).flatten()
    pairs = (rows >= 0).nonzero().squeeze(1)
    return pairs, rows[pairs]
