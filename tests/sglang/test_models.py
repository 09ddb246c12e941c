"""The same promise with another model, with layers moved in chunks, and with the other policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from serving.engine import Completion
from serving.server import Server
from sglang_servers import CANARY, EPLB, LAYOUT, REDUNDANT, SETTINGS, serve_until_rebalanced

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("model", "policy", "redundant", "chunk"),
    [
        # SGLang's GLM-4-MoE makes no room for redundant experts without an all-to-all
        pytest.param("glm4_moe", "affinity", 0, 1, id="glm-dense-layer-chunks"),
        pytest.param("qwen3_moe", "balanced", REDUNDANT, 100, id="balanced", marks=pytest.mark.full),
        pytest.param("qwen3_moe", "deepseek", REDUNDANT, 100, id="deepseek", marks=pytest.mark.full),
    ],
)
def test_output_is_unchanged(
    model: str,
    policy: str,
    redundant: int,
    chunk: int,
    serve: Callable[..., Server],
    reference: Callable[[str], list[Completion]],
) -> None:
    """With a dense first layer, moved one layer per step, and with policies that plan by load only; `sglang serve`."""
    arguments = ["--eplb-rebalance-layers-per-chunk", str(chunk)]
    eplb = replace(EPLB, redundant_experts=redundant)
    server = serve(model, LAYOUT, eplb, SETTINGS.format(policy=policy), arguments=arguments, **CANARY)
    server.wait_ready()
    serve_until_rebalanced(server, reference(model))
