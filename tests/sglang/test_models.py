"""The same promise with layers moved in chunks, other policies and rules, and models that SGLang cannot rebalance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Completion, Eplb
from eplb_plugin.bench.server import Server
from server_plugins import TRITON, python_path
from sglang_servers import CANARY, EPLB, LAYOUT, SETTINGS, serve_until_rebalanced

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("policy", "chunk", "rule", "rebalances"),
    [
        pytest.param("affinity", 1, "weighted", 10, id="affinity-chunks"),
        pytest.param("affinity", 100, "cover", 20, id="affinity-cover"),
        pytest.param("balanced", 100, "weighted", 10, id="balanced", marks=pytest.mark.full),
        pytest.param("deepseek", 100, "weighted", 10, id="deepseek", marks=pytest.mark.full),
    ],
)
def test_output_is_unchanged(
    policy: str,
    chunk: int,
    rule: str,
    rebalances: int,
    serve: Callable[..., Server],
    reference: Callable[[str], list[Completion]],
    tmp_path: Path,
) -> None:
    """Moved one layer per step, by `cover` with the plugin's Triton kernel, and with policies that plan by load only;
    started by `sglang serve`.

    Windows are half as long as intervals: the weights of the tables are solved again between rebalances.
    """
    arguments = ["--eplb-rebalance-layers-per-chunk", str(chunk)]
    settings = SETTINGS.format(policy=policy) + f"window_size: 4\ndispatch: {rule}\n"
    environment = dict(CANARY)
    if rule == "cover":
        environment |= {**TRITON, "EPLB_FAULTS": str(tmp_path / "none"), "PYTHONPATH": python_path("sglang")}
    server = serve("qwen3_moe", LAYOUT, EPLB, settings, arguments=arguments, **environment)
    server.wait_ready()
    serve_until_rebalanced(server, reference("qwen3_moe"), rebalances)
    assert f"dispatch {rule}, token-owner groups of 2" in server.text()
    assert server.text().count("re-split of ") >= 5
    assert ("launched by Triton: tables" in server.text()) == (rule == "cover")


@pytest.mark.parametrize(
    "model",
    ["mixtral", *(pytest.param(one, marks=pytest.mark.full) for one in ("glm4_moe", "qwen2_moe"))],
)
def test_models_that_sglang_cannot_rebalance_are_rearranged(
    model: str, serve: Callable[..., Server], reference: Callable[[str], list[Completion]]
) -> None:
    """Mixtral tells SGLang no expert layout, GLM-4-MoE and Qwen2-MoE name no weights to move: no redundant
    experts, which their code does not know."""
    settings = SETTINGS.format(policy="affinity")
    server = serve(model, LAYOUT, Eplb(0, window_size=8, step_interval=8), settings, **CANARY)
    server.wait_ready()
    serve_until_rebalanced(server, reference(model), 15)


@pytest.mark.full
def test_redundant_experts_of_a_model_that_ignores_them_are_refused(serve: Callable[..., Server]) -> None:
    """SGLang's GLM-4-MoE would fail in its first forward pass."""
    server = serve("glm4_moe", LAYOUT, EPLB, SETTINGS.format(policy="affinity"))
    server.wait_ended(400)
    assert "found 32 slots, expected 48; fix: --ep-num-redundant-experts 0" in server.text()
