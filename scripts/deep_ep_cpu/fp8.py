"""The FP8 cast of DeepEP's low-latency dispatch: e4m3 values with one scale per 128 of them."""

from __future__ import annotations

import torch

BLOCK = 128
LARGEST = 448.0  # of e4m3
LEAST_AMAX = 1e-4


def cast(x: torch.Tensor, round_scale: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [rows, hidden] -> values [rows, hidden] e4m3, scales [rows, hidden / 128] float32 with x ~ values * scales.

    round_scale: scales are the next power of two.
    """
    blocks = x.float().view(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)
    amax = blocks.abs().amax(dim=-1).clamp(min=LEAST_AMAX)
    if round_scale:
        inverse = torch.exp2(torch.ceil(torch.log2(amax * (1.0 / LARGEST))))
        factor = 1.0 / inverse
    else:
        inverse, factor = amax * (1.0 / LARGEST), LARGEST / amax
    return (blocks * factor.unsqueeze(-1)).to(torch.float8_e4m3fn).flatten(-2), inverse


def restore(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The inverse of `cast`: [..., hidden] float32."""
    return (values.float().view(*scales.shape, BLOCK) * scales.unsqueeze(-1)).flatten(-2)
