"""CPU reference of what runs between dispatch and combine: DeepGEMM's masked grouped FP8 GEMM, and the activation.

Shapes: E experts, m rows per expert of which the first masked_m[e] count, k inputs, n outputs.
"""

from __future__ import annotations

import torch

from . import fp8

Scaled = tuple[torch.Tensor, torch.Tensor]


def m_grouped_fp8_gemm_nt_masked(
    a: Scaled, b: Scaled, d: torch.Tensor, masked_m: torch.Tensor, expected_m: int
) -> None:
    """d[e, :masked_m[e]] = a[e] @ b[e].T.

    a: [E, m, k] e4m3 with scales [E, m, k / 128]; b: [E, n, k] e4m3 with scales [E, n / 128, k / 128]; d: [E, m, n]
    bfloat16. Added up in float64: a row does not depend on those beside it.
    """
    for expert, rows in enumerate(masked_m.tolist()):
        left = fp8.restore(a[0][expert, :rows], a[1][expert, :rows]).double()
        scales = b[1][expert].repeat_interleave(fp8.BLOCK, dim=0)[: b[0].shape[1]]
        right = fp8.restore(b[0][expert], scales).double()
        d[expert, :rows] = (left @ right.T).to(d.dtype)


def silu_mul_quant(y: torch.Tensor, masked_m: torch.Tensor) -> Scaled:
    """y: [E, m, 2n] gate and up -> silu(gate) * up as [E, m, n] e4m3 with scales [E, m, n / 128]."""
    values = torch.full((*y.shape[:2], y.shape[2] // 2), torch.nan, dtype=torch.float8_e4m3fn)
    scales = torch.full((*y.shape[:2], values.shape[2] // fp8.BLOCK), torch.nan)
    for expert, rows in enumerate(masked_m.tolist()):
        gate, up = y[expert, :rows].float().chunk(2, dim=-1)
        values[expert, :rows], scales[expert, :rows] = fp8.cast(torch.nn.functional.silu(gate) * up)
    return values, scales
