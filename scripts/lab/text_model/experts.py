"""Training's own way through the experts: grouped by expert, one matrix product each, gradients written in place.

Autograd of a loop over slices of the experts' weights makes a gradient of *all* experts for every one of them, which is
most of a step on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "grouped_in_place"  # of `model.set_experts_implementation`


class GroupedLinear(torch.autograd.Function):
    """rows: [pairs, in], those of one expert side by side; weight: [experts, out, in]; ends: row after every expert's
    last -> [pairs, out].
    """

    @staticmethod
    def forward(context: Any, rows: torch.Tensor, weight: torch.Tensor, ends: list[int]) -> torch.Tensor:
        out = rows.new_empty(len(rows), weight.shape[1])
        for expert, part in enumerate(_parts(ends)):
            torch.mm(rows[part], weight[expert].T, out=out[part])
        context.save_for_backward(rows, weight)
        context.ends = ends
        return out

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        rows, weight = context.saved_tensors
        gradient = gradients[0].contiguous()
        of_rows, of_weight = torch.empty_like(rows), torch.empty_like(weight)
        for expert, part in enumerate(_parts(context.ends)):  # the product over no rows is zero
            torch.mm(gradient[part], weight[expert], out=of_rows[part])
            torch.mm(gradient[part].T, rows[part], out=of_weight[expert])
        return of_rows, of_weight, None


def grouped_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden_states: [tokens, hidden]; top_k_index, top_k_weights: [tokens, k]; the experts' sum for every token."""
    chosen = top_k_index.flatten()
    order = chosen.argsort(stable=True)
    ends = chosen.bincount(minlength=self.num_experts).cumsum(0).tolist()
    token = order // top_k_index.shape[1]
    # autocast does not look into our own function
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_states.dtype
    rows = hidden_states.to(dtype)[token]
    gate, up = GroupedLinear.apply(rows, self.gate_up_proj.to(dtype), ends).chunk(2, dim=-1)
    out = GroupedLinear.apply(self.act_fn(gate) * up, self.down_proj.to(dtype), ends)
    weighted = out.to(hidden_states.dtype) * top_k_weights.flatten()[order, None].to(hidden_states.dtype)
    return torch.zeros_like(hidden_states).index_add_(0, token, weighted)


def _parts(ends: list[int]) -> list[slice]:
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


ALL_EXPERTS_FUNCTIONS.register(NAME, grouped_experts)
