"""PEO through vLLM's own classes, on the CPU reference under the names deep_ep and deep_gemm."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from deep_ep_cpu.grouped_gemm import silu_mul_quant
from deep_ep_cpu.reference import Buffer, PatchedBuffer
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.sections import PeoConfig
from moe_layers import INTER, SMS, TOKENS, Batch, Experts, Lines, buffer_for, fake_modules
from processes import run_ranks

HIDDEN, EXPERTS = 2048, 8  # the smallest hidden size that vLLM has low-latency kernels for


def kernel(buffer: Any, own: Experts) -> Any:
    """vLLM's kernel for one layer over DeepEP low-latency and batched DeepGEMM."""
    from vllm.model_executor.layers.fused_moe import modular_kernel as mk
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import (
        FusedMoEConfig,
        FusedMoEParallelConfig,
        RoutingMethodType,
        fp8_w8a8_moe_quant_config,
    )
    from vllm.model_executor.layers.fused_moe.experts.batched_deep_gemm_moe import BatchedDeepGemmExperts
    from vllm.model_executor.layers.fused_moe.prepare_finalize.deepep_ll import DeepEPLLPrepareAndFinalize

    ranks = dist.get_world_size()
    config = FusedMoEConfig(
        num_experts=EXPERTS, experts_per_token=4, hidden_dim=HIDDEN, intermediate_size=INTER,
        num_local_experts=EXPERTS // ranks, num_logical_experts=EXPERTS, activation=MoEActivation.SILU, device="cpu",
        routing_method=RoutingMethodType.Renormalize, in_dtype=torch.bfloat16,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(), max_num_tokens=TOKENS,
    )  # fmt: skip
    quant = fp8_w8a8_moe_quant_config(own.w13[1], own.w2[1], block_shape=[128, 128])
    prepare = DeepEPLLPrepareAndFinalize(buffer, TOKENS, ranks, use_fp8_dispatch=True)
    return mk.FusedMoEKernel(prepare, BatchedDeepGemmExperts(config, quant, TOKENS, ranks))


def run(layer: Any, own: Experts, batch: Batch, shared: list[Any]) -> torch.Tensor:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    return layer.apply(
        hidden_states=batch.x, w1=own.w13[0], w2=own.w2[0], topk_weights=batch.topk_weights, topk_ids=batch.topk_idx,
        activation=MoEActivation.SILU, global_num_experts=EXPERTS, expert_map=None,
        apply_router_weight_on_input=False, shared_experts=lambda x, order: shared.append((x, order)),
        shared_experts_input=batch.x,
    )  # fmt: skip


def engine() -> tuple[Any, Any]:
    """vLLM with the fake modules and without the activation's CUDA kernel; the plugin's module, and fake deep_gemm."""
    fakes = fake_modules(PatchedBuffer)
    sys.modules.update(fakes)
    from vllm.model_executor.layers.fused_moe.experts import batched_deep_gemm_moe

    from eplb_plugin.engines.vllm import peo

    batched_deep_gemm_moe.persistent_masked_m_silu_mul_quant = lambda y, masked_m, **_: silu_mul_quant(y, masked_m)
    return peo, fakes["deep_gemm"]


def methods_and_rounds_through_vllm() -> None:
    from eplb_plugin.engines import hooks

    rank, ranks = dist.get_rank(), dist.get_world_size()
    peo, deep_gemm = engine()
    log = Lines()
    experts = Experts.drawn(EXPERTS, HIDDEN)
    own = experts.of_rank(rank, ranks)
    buffers = {kind: buffer_for(kind, EXPERTS, hidden=HIDDEN) for kind in (Buffer, PatchedBuffer)}
    batches = [Batch.drawn(tokens, EXPERTS, 10 * tokens + rank, HIDDEN) for tokens in (TOKENS, 0 if rank else 3)]
    wanted = [run(kernel(buffers[Buffer], own), own, batch, []) for batch in batches]
    torch.testing.assert_close(wanted[0].float(), experts.exactly(batches[0]), rtol=0.02, atol=0.02)
    hooks.apply(peo.PEO)

    def check(settings: PeoConfig, kind: type[Any], groups: list[tuple[int, int]]) -> str:
        """The log's last line; both batches, and a layer of its own for each, as a model has them."""
        peo.set_peo(settings)
        before, index = len(log.lines), buffers[kind]._index
        for batch, expected in zip(batches, wanted, strict=True):
            shared: list[Any] = []
            deep_gemm.log.clear()
            layer = kernel(buffers[kind], own)
            assert torch.equal(run(layer, own, batch, shared), expected), settings
            assert deep_gemm.log == groups, settings
            assert len(shared) == 1
            assert shared[0][0] is batch.x
            assert layer.prepare_finalize.buffer is buffers[kind]  # nothing of ours is left in the layer
            assert deep_gemm.get_num_sms() == 78
        assert buffers[kind]._index == index  # an even number of calls
        said = log.lines[before:]
        assert len(said) == (rank == 0)  # once, not for every layer and rank
        return said[0] if said else ""

    local, lines = EXPERTS // ranks, []
    for number in (1, 2, 3, 4):
        for rounds in (1, 2, 4):
            settings = PeoConfig(method=f"overlap-{number}", num_rounds=rounds, **SMS)
            lines.append(check(settings, PatchedBuffer, [(50, local // rounds), (54, local // rounds)] * rounds))
    lines.append(
        check(PeoConfig(num_rounds=2, stock_api=True, **SMS), Buffer, [(50, local // 2), (54, local // 2)] * 2)
    )
    whole = [(78, local)] * 2
    lines.append(check(PeoConfig(num_rounds=2), Buffer, whole))
    for rounds in (3, 3 if rank else 2):  # the second time on rank 1 alone
        lines.append(check(PeoConfig(num_rounds=rounds), PatchedBuffer, whole))
    expected = [
        *(
            f"PEO: overlap-{n} in {r} rounds of {local} local experts (patched API)"
            for n in (1, 2, 3, 4)
            for r in (1, 2, 4)
        ),
        f"PEO: overlap-2 in 2 rounds of {local} local experts (stock API)",
        "PEO is off: this deep_ep has no hook_use_comm_stream, ",
        f"PEO is off: peo.num_rounds: found 3 rounds of {local} local experts",
        f"PEO is off: on rank 1: peo.num_rounds: found 3 rounds of {local} local experts",
    ]
    for line, begin in zip(lines, expected, strict=True):
        assert line.startswith(begin) or rank
    hooks.remove(peo.PEO)


def test_methods_and_rounds_through_vllm():
    """Bits, GEMM groups and SMs, shared experts, calls on the buffer; and off, alike on all ranks, with the reason."""
    run_ranks(2, methods_and_rounds_through_vllm, timeout=240.0)


def off_for_layers_that_do_not_suit() -> None:
    from eplb_plugin.engines import hooks

    peo, deep_gemm = engine()
    log = Lines()
    own, batch = Experts.drawn(EXPERTS, HIDDEN), Batch.drawn(3, EXPERTS, 1, HIDDEN)
    layer = kernel(buffer_for(PatchedBuffer, EXPERTS, hidden=HIDDEN), own)
    hooks.apply(peo.PEO)
    peo.set_peo(PeoConfig(num_rounds=2))

    def off(reason: str) -> None:
        deep_gemm.log.clear()
        run(layer, own, batch, [])
        assert deep_gemm.log == [(78, EXPERTS)] * 2
        assert reason in log.lines[-1]

    layer.fused_experts._lora_context = SimpleNamespace()
    off("PEO is off: LoRA")
    layer.fused_experts._lora_context = None
    from vllm.v1.worker import ubatching

    ubatching._THREAD_ID_TO_CONTEXT[-1] = 0  # as while two threads run the halves of a batch
    assert peo._unsuited(layer.impl) == "dual-batch overlap (DBO) is running"
    ubatching._THREAD_ID_TO_CONTEXT.clear()
    run(layer, own, batch, [])
    assert deep_gemm.log[2:] == [(62, EXPERTS // 2)] * 4
    layer.impl.prepare_finalize.use_fp8_dispatch = False
    assert "BF16" in peo._unsuited(layer.impl)
    layer.impl.prepare_finalize = SimpleNamespace()
    assert "not DeepEP low-latency" in peo._unsuited(layer.impl)
    with pytest.raises(PluginError, match="peo: found PEO with vLLM's micro-batches"):
        peo.refuse_unsuited(SimpleNamespace(use_ubatching=True))
    peo.refuse_unsuited(SimpleNamespace(use_ubatching=False))


def test_layers_that_do_not_suit_run_as_ever():
    run_ranks(1, off_for_layers_that_do_not_suit, timeout=240.0)


def captures() -> None:
    from eplb_plugin.engines.peo import Peo

    peo, _ = engine()
    buffer = buffer_for(PatchedBuffer, EXPERTS)
    runs = Peo(PeoConfig(num_rounds=2), lambda: peo.deep_gemm)
    capturing = SimpleNamespace(type="cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with runs.layer(buffer, 4, 8, capturing) as chosen:
            assert chosen is buffer  # nothing is agreed, made or compiled during a capture
        with runs.layer(buffer, 4, 8, torch.device("cpu")) as chosen:
            assert chosen is runs.running is not None
        assert runs.running is None
        with runs.layer(buffer, 4, 8, capturing) as chosen:
            assert chosen is runs.running is not None
        with runs.layer(buffer, 4, 16, capturing) as chosen:
            assert chosen is buffer


def test_a_batch_size_is_captured_in_rounds_only_after_it_has_run():
    run_ranks(1, captures, timeout=240.0)


def activations() -> None:
    from eplb_plugin.engines import hooks
    from eplb_plugin.engines.vllm.activation import activate
    from eplb_plugin.engines.vllm.worker_hooks import WORKER_HOOKS
    from eplb_plugin.settings.config import PluginConfig

    peo, _ = engine()
    from vllm.config.parallel import EPLBConfig

    def worker(ubatches: bool) -> SimpleNamespace:
        parallel = SimpleNamespace(
            enable_eplb=True, enable_elastic_ep=False, tensor_parallel_size=1, data_parallel_size=1, rank=0,
            prefill_context_parallel_size=1, data_parallel_rank=0, eplb_config=EPLBConfig(), use_ubatching=ubatches,
            worker_cls="vllm.v1.worker.gpu_worker.Worker",
        )  # fmt: skip
        model = SimpleNamespace(get_num_experts=lambda: EXPERTS, enable_sleep_mode=False)
        return SimpleNamespace(parallel_config=parallel, model_config=model, weight_transfer_config=None)

    def applied(table: Any) -> set[bool]:
        return {status.applied for status in hooks.check(table)}

    with pytest.raises(PluginError, match="peo: found PEO with vLLM's micro-batches"):
        activate(PluginConfig(peo=PeoConfig()), worker(ubatches=True))
    assert applied(WORKER_HOOKS) | applied(peo.PEO) == {False}
    activate(PluginConfig(), worker(ubatches=True))
    assert (applied(WORKER_HOOKS), applied(peo.PEO)) == ({True}, {False})
    activate(PluginConfig(peo=PeoConfig()), worker(ubatches=False))
    assert applied(WORKER_HOOKS) | applied(peo.PEO) == {True}
    assert peo._peo is not None


def test_activation_applies_the_hooks_where_the_settings_ask_for_them():
    run_ranks(1, activations, timeout=240.0)
