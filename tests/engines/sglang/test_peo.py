"""PEO through SGLang's own classes, on the CPU reference under the names deep_ep and deep_gemm."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from deep_ep_cpu.grouped_gemm import silu_mul_quant
from deep_ep_cpu.reference import Buffer, PatchedBuffer
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.sections import PeoConfig
from moe_layers import HIDDEN, INTER, SMS, TOKENS, TOP_K, Batch, Experts, Lines, buffer_for, fake_modules
from processes import run_ranks

from .schedulers import ON_CPU, model_folder

EXPERTS = 8


def engine(folder: str) -> Any:
    """A configured SGLang on the fake modules, without CUDA's activation kernel; the fake deep_gemm."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    fakes = fake_modules(PatchedBuffer)
    sys.modules.update(fakes)
    os.environ |= ON_CPU | {"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK": str(TOKENS)}
    from eplb_cpu_engines.sglang import device

    device.install()
    from sglang.srt.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
    from sglang.srt.layers import deep_gemm_wrapper
    from sglang.srt.layers.deep_gemm_wrapper import compile_utils, entrypoint
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.layers.moe.moe_runner import deep_gemm as runner
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(
        model_path=folder, device="cpu", attention_backend="torch_native", sampling_backend="pytorch",
        grammar_backend="none", dtype="float32", tp_size=ranks, ep_size=ranks, moe_a2a_backend="deepep",
        deepep_mode="low_latency",
    )  # fmt: skip
    args.resolve_once()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=rank))
    initialize_moe_config()
    init_distributed_environment(ranks, rank, local_rank=rank, backend="gloo")
    initialize_model_parallel(backend="gloo")
    entrypoint.deep_gemm = fakes["deep_gemm"]  # SGLang imports it only where it sees a GPU
    entrypoint._ensure_cuda = lambda pair: pair
    compile_utils._maybe_compile_deep_gemm_one_type_all = lambda *_: None
    deep_gemm_wrapper.get_mn_major_tma_aligned_tensor = lambda scales: scales
    runner._varlen_deep_gemm_silu_mul_quant = lambda y, masked_m, **_: silu_mul_quant(y, masked_m)
    return fakes["deep_gemm"]


class Recorder:
    """What SGLang's EPLB counts."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = []

    def on_deepep_dispatch_low_latency(self, masked_m: torch.Tensor) -> None:
        self.counts.append(masked_m.tolist())


def layer_of(own: Experts, buffer: Any) -> Any:
    """SGLang's FusedMoE with its dispatcher and runner; its quantization method is two lines here."""
    from sglang.srt.batch_overlap.two_batch_overlap import MaybeTboDeepEPDispatcher
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.moe.moe_runner import MoeRunner, MoeRunnerConfig
    from sglang.srt.layers.moe.moe_runner.deep_gemm import DeepGemmMoeQuantInfo
    from sglang.srt.layers.moe.token_dispatcher.deepep import DeepEPBuffer
    from sglang.srt.layers.moe.utils import DeepEPMode, MoeRunnerBackend

    ranks = dist.get_world_size()
    layer = FusedMoE.__new__(FusedMoE)
    torch.nn.Module.__init__(layer)
    config = MoeRunnerConfig(
        num_experts=EXPERTS, num_local_experts=EXPERTS // ranks, hidden_size=HIDDEN,
        intermediate_size_per_partition=INTER, layer_id=0, top_k=TOP_K, params_dtype=torch.bfloat16,
    )  # fmt: skip
    layer.runner = MoeRunner(MoeRunnerBackend.DEEP_GEMM, config)
    layer.dispatcher = MaybeTboDeepEPDispatcher(
        group=dist.group.WORLD, router_topk=TOP_K, permute_fusion=True, num_experts=EXPERTS,
        num_local_experts=EXPERTS // ranks, hidden_size=HIDDEN, params_dtype=torch.bfloat16,
        deepep_mode=DeepEPMode.LOW_LATENCY, async_finish=True, return_recv_hook=True,
    )  # fmt: skip
    layer.dispatcher.set_quant_config({})
    layer.num_local_experts, layer.w13_weight = EXPERTS // ranks, own.w13[0]
    layer._dwdp_bound = layer.reduce_results = False
    info = DeepGemmMoeQuantInfo(
        w13_weight=own.w13[0], w2_weight=own.w2[0], use_fp8=True, w13_scale=own.w13[1], w2_scale=own.w2[1],
        block_shape=[128, 128],
    )  # fmt: skip
    layer.quant_method = SimpleNamespace(apply=lambda layer, dispatch_output: layer.runner.run(dispatch_output, info))
    DeepEPBuffer._state().buffer = buffer
    return layer


def run(layer: Any, batch: Batch, calls: list[Any]) -> torch.Tensor:
    handle = layer.dispatcher.register_deepep_dispatch_hook(lambda dispatcher: calls.append(dispatcher))
    try:
        return layer.forward_impl(
            batch.x, SimpleNamespace(topk_ids=batch.topk_idx.int(), topk_weights=batch.topk_weights)
        )
    finally:
        for one in handle:
            one.remove()


def activate() -> None:
    """As in a scheduler whose settings have `peo:`; what EPLB asks of SGLang's configuration is tested elsewhere."""
    from sglang.srt.eplb.expert_location import ModelConfigForExpertLocation

    from eplb_plugin.engines.sglang import activation

    os.environ["EPLB_PLUGIN_CONFIG"] = json.dumps({"peo": {}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation, "refuse_unsuited", lambda config, layout: None)
        patch.setattr(activation, "Adapter", lambda *_: SimpleNamespace(resume=lambda group: None))
        found = staticmethod(lambda model_config: ModelConfigForExpertLocation(1, EXPERTS))
        patch.setattr(ModelConfigForExpertLocation, "from_model_config", found)
        activation.activate(SimpleNamespace(model_path="model"))


def methods_and_rounds_through_sglang(folder: str) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    deep_gemm = engine(folder)
    from sglang.srt.layers.moe.token_dispatcher import deepep

    from eplb_plugin.engines import hooks
    from eplb_plugin.engines.sglang import peo

    recorder = Recorder()
    deepep.get_global_expert_distribution_recorder = lambda: recorder
    experts = Experts.drawn(EXPERTS)
    own = experts.of_rank(rank, ranks)
    buffers = {kind: buffer_for(kind, EXPERTS) for kind in (Buffer, PatchedBuffer)}
    batches = [Batch.drawn(tokens, EXPERTS, 10 * tokens + rank) for tokens in (TOKENS, 0 if rank else 3)]
    wanted = [run(layer_of(own, buffers[Buffer]), batch, []) for batch in batches]
    counts = list(recorder.counts)
    torch.testing.assert_close(wanted[0].float(), experts.exactly(batches[0]), rtol=0.02, atol=0.02)
    activate()
    assert all(status.applied for status in hooks.check(peo.PEO))
    log = Lines()

    def check(settings: PeoConfig, kind: type[Any], groups: list[tuple[int, int]]) -> str:
        """The log's last line; both batches, and a layer of its own for each, as a model has them."""
        peo.set_peo(settings)
        before, index = len(log.lines), buffers[kind]._index
        recorder.counts.clear()
        for batch, expected in zip(batches, wanted, strict=True):
            calls: list[Any] = []
            deep_gemm.log.clear()
            assert torch.equal(run(layer_of(own, buffers[kind]), batch, calls), expected), settings
            assert deep_gemm.log == groups, settings
            assert len(calls) == 1  # SGLang's hooks between SEND and RECV
            assert deep_gemm.get_num_sms() == 78
        assert recorder.counts == counts  # once for each layer, and all experts
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
    lines.append(check(PeoConfig(num_rounds=2), Buffer, [(78, local)] * 2))
    expected = [
        *(
            f"PEO: overlap-{n} in {r} rounds of {local} local experts (patched API)"
            for n in (1, 2, 3, 4)
            for r in (1, 2, 4)
        ),
        f"PEO: overlap-2 in 2 rounds of {local} local experts (stock API)",
        "PEO is off: this deep_ep has no hook_use_comm_stream, ",
    ]
    for line, begin in zip(lines, expected, strict=True):
        assert line.startswith(begin) or rank
    layers_that_do_not_suit(peo, layer_of(own, buffers[PatchedBuffer]))


def layers_that_do_not_suit(peo: Any, layer: Any) -> None:
    from sglang.srt.runtime_context import get_exec

    impl = layer.dispatcher._inners[0]._get_impl()
    assert peo._unsuited(layer) == ""
    impl.overlap_args = object()
    assert peo._unsuited(layer) == "single-batch overlap (SBO) is running"
    layer.w13_weight = layer.w13_weight.bfloat16()
    assert peo._unsuited(layer) == "expert weights are not FP8"
    impl.use_fp8 = False
    assert peo._unsuited(layer) == "layers do not dispatch FP8 for the runner deep_gemm"
    layer.dispatcher._inners.append(layer.dispatcher._inners[0])
    assert peo._unsuited(layer) == "layers dispatch by 2 × DeepEPDispatcher, not DeepEP"
    layer.dispatcher = SimpleNamespace()
    assert peo._unsuited(layer) == "layers dispatch by 1 × SimpleNamespace, not DeepEP"
    peo.refuse_unsuited()
    for number in ("two", "single"):
        with pytest.MonkeyPatch.context() as patch:
            overlap = SimpleNamespace(enable_two_batch_overlap=False, enable_single_batch_overlap=False)
            setattr(overlap, f"enable_{number}_batch_overlap", True)
            patch.setattr(peo, "get_exec", lambda overlap=overlap: SimpleNamespace(overlap=overlap))
            with pytest.raises(PluginError, match=f"peo: found PEO with --enable-{number}-batch-overlap"):
                peo.refuse_unsuited()
    assert not get_exec().overlap.enable_two_batch_overlap


def test_methods_and_rounds_through_sglang(tmp_path: Path):
    """Bits, GEMM groups and SMs, counts for EPLB, dispatch hooks, calls on the buffer; and off, with the reason."""
    run_ranks(2, methods_and_rounds_through_sglang, model_folder(tmp_path), timeout=240.0)
