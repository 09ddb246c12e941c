"""The pass that measures memory has no attention; what stands in its output is not left to chance."""

from __future__ import annotations

import pytest
import torch
from eplb_cpu_engines.vllm import profiling
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> CPUAttentionBackendImpl:
    monkeypatch.setattr(CPUAttentionBackendImpl, "forward", CPUAttentionBackendImpl.forward)  # put back afterwards
    profiling.install()
    return object.__new__(CPUAttentionBackendImpl)


def test_a_pass_without_attention_has_zeros(attention: CPUAttentionBackendImpl) -> None:
    """As of a GPU's backend; NaN would end model runner V2 in Triton's interpreter."""
    output = torch.full((3, 8), torch.nan)
    assert attention.forward(None, output, output, output, output, None, output) is output
    assert (output == 0).all()
