"""What PEO's executor and the engines ask of `deep_ep` and DeepGEMM, in the wheels that SGLang's users install."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest

from contracts import check
from contracts.sources import Sources
from contracts.table import RELIANCES
from contracts.uses import ROOT, PythonFile
from eplb_plugin.engines.releases import VLLM
from eplb_plugin.peo.cuda import ROUND_ARGUMENTS

DEEP_EP, DEEP_GEMM = ("sgl-deep-ep", "0.1.2.post1"), ("sgl-deep-gemm", "0.2.5")
PLUGIN = Sources(ROOT, ROOT / "scripts")
CALLS = ("low_latency_dispatch", "low_latency_combine")


@pytest.fixture
def deep_ep(wheel: Callable[[str, str], Sources]) -> Sources:
    return wheel(*DEEP_EP)


def test_the_buffer_has_what_the_executor_asks_of_it(deep_ep: Sources) -> None:
    own = RELIANCES["deep_ep"]
    assert check.reads(deep_ep, own.files(), own.table) == []


@pytest.mark.parametrize("call", CALLS)
def test_the_buffer_in_its_place_takes_the_calls_that_it_takes(deep_ep: Sources, call: str) -> None:
    """By place and by name: engines use both."""
    assert check.stands_for(PLUGIN, f"eplb_plugin.peo.cuda:RoundBuffer.{call}", deep_ep, f"deep_ep:Buffer.{call}") == []


@pytest.mark.parametrize("call", CALLS)
def test_the_reference_has_its_signatures(deep_ep: Sources, call: str) -> None:
    """Names, order and defaults; what SGLang's fork has besides (NVFP4, signals) the reference has not."""
    target = f"deep_ep_cpu.reference:Buffer.{call}"
    assert check.stands_for(PLUGIN, target, deep_ep, f"deep_ep:Buffer.{call}") == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("topk_idx: torch.Tensor, topk_weights: torch.Tensor", "topk_weights: torch.Tensor, topk_idx: torch.Tensor"),
     ("handle: tuple, use_logfmt", "handles: tuple, use_logfmt")],
)  # fmt: skip
def test_another_order_or_name_would_be_told(
    old: str, new: str, deep_ep: Sources, changed: Callable[..., Sources]
) -> None:
    other = changed(deep_ep, "deep_ep/buffers/legacy.py", old, new)
    target = "eplb_plugin.peo.cuda:RoundBuffer.low_latency_combine"
    (told,) = check.stands_for(PLUGIN, target, other, "deep_ep:Buffer.low_latency_combine")
    assert told.startswith(f"{target}: found deep_ep:Buffer.low_latency_combine with self x")


@pytest.mark.parametrize(("call", "size"), [(CALLS[0], 5), (CALLS[1], 3)])
def test_results_are_taken_apart_as_they_are_made(deep_ep: Sources, call: str, size: int) -> None:
    assert check.returns(deep_ep, f"deep_ep:Buffer.{call}", size) == []


def test_a_handle_begins_with_what_has_a_row_per_expert(deep_ep: Sources) -> None:
    """The stock API's rounds are merged by cutting these two at the experts of a round."""
    body = deep_ep.find("deep_ep:Buffer.low_latency_dispatch").node
    made = [node.value for node in ast.walk(body) if isinstance(node, ast.Assign) and names(node.targets) == ["handle"]]
    assert [names(one.elts)[:2] for one in made if isinstance(one, ast.Tuple)] == [
        ["packed_recv_src_info", "packed_recv_layout_range"]
    ]


def names(nodes: list[ast.expr]) -> list[str]:
    return [node.id if isinstance(node, ast.Name) else "" for node in nodes]


@pytest.mark.parametrize("call", CALLS)
def test_it_has_no_rounds(deep_ep: Sources, call: str) -> None:
    """As docs/peo.md says of this wheel: with it PEO is off, or the stock API is used."""
    assert not ROUND_ARGUMENTS & set(deep_ep.signature(f"deep_ep:Buffer.{call}").parameters)


@pytest.mark.parametrize("call", CALLS)
def test_a_patched_buffer_takes_what_vllm_passes(wheel: Callable[[str, str], Sources], call: str) -> None:
    """vLLM names NVFP4's arguments only where it dispatches NVFP4."""
    (root,) = wheel("vllm", VLLM.tested[0]).roots
    file = root / "vllm/model_executor/layers/fused_moe/prepare_finalize/deepep_ll.py"
    assert check.calls(PLUGIN, f"deep_ep_cpu.reference:PatchedBuffer.{call}", [PythonFile(file)]) == []


def test_deep_gemm_can_be_told_how_many_sms_it_may_use(wheel: Callable[[str, str], Sources]) -> None:
    own = RELIANCES["deep_gemm"]
    assert check.reads(wheel(*DEEP_GEMM), own.files(), own.table) == []


def test_deep_ep_2_5_has_no_buffer_with_these_calls(wheel: Callable[[str, str], Sources]) -> None:
    """Upstream removed the low-latency kernels: no patch can bring rounds there."""
    newer = wheel("sgl-deep-ep-v25", "0.1.0rc0")
    (root,) = newer.roots
    assert newer.tree("deep_ep_v25") is not None
    assert not [path for path in root.rglob("*.py") if "low_latency" in path.read_text()]
