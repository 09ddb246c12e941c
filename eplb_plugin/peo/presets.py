"""GPUs, links and models with figures from public sources. What nobody publishes is marked as an assumption."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import mismatch


@dataclass(frozen=True)
class Hardware:
    """One rank. Data sheets: num_sms, fp8_tflops (dense), hbm_gbs (GB/s).

    link_gbs: GB/s of the rank's own link, each way; link_us: from the last byte's departure to its arrival. Both fit
        DeepEP's published times (see PUBLISHED_TIMES) for a 400 Gbit/s card and all peers behind it.
    launch_us: a kernel's fixed time from start to first useful work. Assumption; it decides small batches.
    sm_copy_gbs: what one SM copies between HBM and a send or receive buffer. Assumption.
    gemm_efficiency, hbm_efficiency: reachable shares of the data sheet. DeepGEMM's README reports up to 1550 of
        1979 TFLOPS on H800; the rest is assumption.
    hbm_share_of_sms: share of the SMs that saturates the HBM; fewer get proportionally less. Assumption.
    """

    name: str
    num_sms: int
    fp8_tflops: float
    hbm_gbs: float
    link_gbs: float = 46.0
    link_us: float = 14.0
    launch_us: float = 2.5
    sm_copy_gbs: float = 35.0
    gemm_efficiency: float = 0.75
    hbm_efficiency: float = 0.8
    hbm_share_of_sms: float = 0.6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and not 0.0 < value < float("inf"):
                raise mismatch(f"hardware.{field.name}", found=value, expected="> 0", fix="pass a finite number")
        if self.num_sms < 2:
            raise mismatch("hardware.num_sms", found=self.num_sms, expected=">= 2", fix="count the SMs of the GPU")


@dataclass(frozen=True)
class Model:
    """An MoE layer: routed experts, experts per token, hidden size, an expert's intermediate size; FP8 weights."""

    name: str
    num_experts: int
    top_k: int
    hidden: int
    intermediate: int


# data sheets: nvidia.com (H100, H200 SXM); H20 as listed by server vendors; H800 = H100 with slower NVLink
HARDWARE = {
    one.name: one
    for one in (
        Hardware("H20", 78, 296.0, 4000.0),
        Hardware("H100", 132, 1979.0, 3350.0),
        Hardware("H800", 132, 1979.0, 3350.0),
        Hardware("H200", 132, 1979.0, 4800.0),
    )
}
# config.json of the models on huggingface.co
MODELS = {
    one.name: one
    for one in (
        Model("deepseek-v3", 256, 8, 7168, 2048),
        Model("kimi-k2", 384, 8, 7168, 2048),
        Model("qwen3-coder-480b", 160, 8, 6144, 2560),
        Model("qwen3-235b", 128, 8, 4096, 1536),
        Model("glm-4.5", 160, 8, 5120, 1536),
    )
}


@dataclass(frozen=True)
class PublishedTime:
    """DeepEP's docs/legacy.md: H800, 400 Gbit/s CX7, 128 tokens, hidden 7168, top-8, FP8 dispatch, BF16 combine."""

    num_ranks: int
    dispatch_us: float
    combine_us: float


# those of up to 32 ranks go over NVLink in part, which the model's one link does not know
PUBLISHED_TIMES = (PublishedTime(64, 173, 314), PublishedTime(128, 192, 369), PublishedTime(256, 194, 360))


@dataclass(frozen=True)
class Claim:
    """What DeepEP PR 492 says PEO gains; it does not say on which GPU, with how many ranks, or gains in what."""

    family: str
    batch: int
    percent: float
    models: tuple[str, ...]


CLAIMS = (
    Claim("DPSK", 4, 11.0, ("deepseek-v3",)),
    Claim("DPSK", 128, 31.0, ("deepseek-v3",)),
    Claim("QWEN", 16, 50.0, ("qwen3-coder-480b", "qwen3-235b")),
)
