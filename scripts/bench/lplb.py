"""SGLang's LPLB (`--ep-dispatch-algorithm lp`) from its package, on a CPU: its constraints, its references in torch.

What serves on a GPU (Hopper or newer) are its CUDA kernels, which these references are tested against there; so what is
counted here is its balance and its copies, and the reference's time is not its kernel's.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch

from eplb_plugin import Plan


class Lplb:
    """One layer of a plan's placement: probabilities of replicas from the counts of a step, and a draw by them."""

    def __init__(self, made: Plan) -> None:
        import sglang.kernels.ops.lplb.torch_solver as gpu
        from sglang.srt.eplb.lplb_solver import LPLBSolver

        compile_for_gpu, gpu.warmup = gpu.warmup, lambda *_, **__: None
        placement = made.placement
        slots, held = torch.from_numpy(placement.phy2log[0]).long(), torch.from_numpy(placement.log2phy[0]).long()
        valid = torch.from_numpy(placement.replica_count[0])
        self.solver = LPLBSolver(slots, held, made.topology.num_ranks, None, valid)
        gpu.warmup = compile_for_gpu

    def probabilities(self, counts: torch.Tensor) -> torch.Tensor:
        """counts: [E] float32 -> [E, replicas], as its kernels around the solver are described."""
        from sglang.test.kernels.lplb import solve_ipm_torch_reference

        own, share = self.solver, counts / counts.sum()
        single = share[own.log_single]
        target = torch.cat([share[own.log_replicated], -(own.B1 @ single)])
        begun = (target - own.A_base.sum(dim=1))[:, None]
        solved = solve_ipm_torch_reference(torch.cat([own.A_base, begun], dim=1), target, own.c_vec)
        slots = torch.zeros(own.num_phy + 1)  # the last one is no slot
        slots[own.phy_replicated] = solved[: own.num_red_phy].clamp(min=0.0)
        slots[own.phy_single] = single
        return slots[own.log2phy]

    def route(self, ids: torch.Tensor, seed: int) -> np.ndarray:
        """ids: [T, k] of all ranks' tokens -> [T, k] slots."""
        from sglang.test.kernels.lplb import dispatch_probability_torch_reference as draw

        counts = torch.bincount(ids.flatten(), minlength=self.solver.num_logical).float()
        random = torch.rand(ids.numel(), generator=torch.Generator().manual_seed(seed))
        return draw(ids, self.probabilities(counts), self.solver.log2phy, random).numpy()


def has_lplb() -> bool:
    try:
        return find_spec("sglang.test.kernels.lplb") is not None
    except ModuleNotFoundError:  # not even its package
        return False
