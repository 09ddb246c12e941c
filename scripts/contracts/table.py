"""Attributes of objects that engines and libraries hand to the plugin: by class, as it stands in their release.

Imports, calls and hooks are not listed: `check` reads them from the plugin's files. A module in the place of a class
stands for what it sets on objects of other classes. Calls of what is named here are checked as well.
"""

from __future__ import annotations

from typing import NamedTuple

from .uses import PythonFile, plugin_files

_FUSED = "vllm.model_executor.layers.fused_moe"
VLLM = {
    "vllm.config.vllm:VllmConfig": "additional_config kv_transfer_config model_config parallel_config scheduler_config "
    "weight_transfer_config",
    "vllm.config.parallel:ParallelConfig": "data_parallel_rank data_parallel_size enable_elastic_ep enable_eplb "
    "eplb_config num_ubatches prefill_context_parallel_size rank tensor_parallel_size use_ubatching worker_cls",
    "vllm.config.parallel:EPLBConfig": "communicator num_redundant_experts step_interval window_size",
    "vllm.config.model:ModelConfig": "compute_hash enable_sleep_mode get_num_experts model",
    "vllm.config.scheduler:SchedulerConfig": "max_num_batched_tokens",
    "vllm.config.kv_transfer:KVTransferConfig": "kv_role",
    "vllm.engine.arg_utils:EngineArgs": "additional_config data_parallel_size enable_dbo enable_elastic_ep enable_eplb "
    "prefill_context_parallel_size tensor_parallel_size ubatch_size",
    "vllm.v1.engine.async_llm:AsyncLLM": "vllm_config",
    "vllm.v1.engine.llm_engine:LLMEngine": "vllm_config",
    "vllm.v1.executor.abstract:Executor": "collective_rpc vllm_config",
    "vllm.v1.worker.worker_base:WorkerWrapperBase": "vllm_config",
    "vllm.v1.worker.gpu_worker:Worker": "model_runner",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": "eplb_state",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner": "eplb_state get_model",
    "vllm.distributed.parallel_state:GroupCoordinator": "cpu_group device_group rank_in_group ranks world_size",
    "vllm.distributed.eplb.eplb_state:EplbState": "_should_record_current_step expert_rearrangement_step "
    "expert_rearrangement_step_interval is_async model_states",
    "vllm.distributed.eplb.eplb_state:EplbModelState": "expert_buffer expert_load_pass expert_load_pass_buffer "
    "expert_load_window logical_replica_count logical_to_physical_map model physical_to_logical_map rebalanced",
    "vllm.distributed.eplb.eplb_state:EplbLayerState": "logical_to_physical_map",
    "vllm.model_executor.models.interfaces:MixtureOfExperts": "expert_weights moe_layers num_expert_groups "
    "num_logical_experts num_moe_layers num_physical_experts",
    f"{_FUSED}.runner.moe_runner:MoERunner": "do_naive_dispatch_combine eplb_state is_monolithic layer_id layer_name "
    "moe_config routed_experts router set_eplb_state",
    f"{_FUSED}.routed_experts:RoutedExperts": "local_num_experts quant_method",
    f"{_FUSED}.router.base_router:BaseRouter": "eplb_state top_k",
    f"{_FUSED}.config:FusedMoEConfig": "moe_parallel_config",
    f"{_FUSED}.config:FusedMoEParallelConfig": "ep_rank ep_size is_sequence_parallel use_all2all_kernels",
    "vllm.v1.worker.ubatch_utils:UBatchSlice": "token_slice",
    # MegaMoE layers, whose module is not imported only to ask for them
    "vllm.models.deepseek_v4.nvidia.model": "DeepseekV4MegaMoEExperts use_sequence_parallel",
    "vllm.models.deepseek_v4.nvidia.model:DeepseekV4MegaMoEExperts": "eplb_state experts_start_idx get_expert_weights "
    "layer_id num_local_experts prefix set_eplb_state top_k",
    "vllm.models.deepseek_v4.common.eplb_util": "moe_mlp_layers",
    # PEO
    f"{_FUSED}.modular_kernel:FusedMoEKernelModularImpl": "fused_experts prepare_finalize",
    f"{_FUSED}.modular_kernel:ExpertTokensMetadata": "expert_num_tokens",
    f"{_FUSED}.prepare_finalize.deepep_ll:DeepEPLLPrepareAndFinalize": "buffer use_fp8_dispatch",
    f"{_FUSED}.experts.batched_deep_gemm_moe:BatchedDeepGemmExperts": "quant_config",
    f"{_FUSED}.experts.lora_experts_mixin": "_lora_context",
    f"{_FUSED}.config:FusedMoEQuantConfig": "_w1 _w2",
    f"{_FUSED}.config:FusedMoEQuantDesc": "scale",
    "vllm.utils.deep_gemm": "get_num_sms set_num_sms",
    "vllm.third_party.deep_gemm": "get_num_sms set_num_sms",
}

_ARGS, _MOE = "sglang.srt.arg_groups.fields", "sglang.srt.layers.moe"
SGLANG = {
    f"{_ARGS}.exec_:ExecMoe": "deepep_mode elastic_ep_backend enable_eplb ep_dispatch_algorithm "
    "ep_num_redundant_experts eplb_algorithm eplb_min_rebalancing_utilization_threshold "
    "eplb_rebalance_layers_per_chunk expert_distribution_recorder_buffer_size expert_distribution_recorder_mode "
    "init_expert_location moe_a2a_backend",
    f"{_ARGS}.exec_:ExecOverlap": "enable_two_batch_overlap",
    f"{_ARGS}.device:Device": "watchdog_timeout",
    f"{_ARGS}.model:Model": "weight_cache_mode",
    f"{_ARGS}.parallel:Parallel": "attn_cp_size enable_dp_attention "
    "enable_dp_attention_local_control_broadcast enable_prefill_cp ep_size node_rank pp_size tp_size",
    f"{_ARGS}.schedule:Schedule": "chunked_prefill_size max_prefill_tokens max_running_requests",
    f"{_ARGS}.spec:Spec": "speculative_num_draft_tokens",
    f"{_ARGS}.disagg:Disagg": "disaggregation_mode",
    f"{_ARGS}.lora:Lora": "enable_lora lora_paths",
    f"{_ARGS}.exec_": "moe overlap",
    "sglang.srt.runtime_context": "attn_dp_size moe_ep_size",
    "sglang.srt.configs.model_config:ModelConfig": "model_path",
    "sglang.srt.distributed.parallel_state:GroupCoordinator": "cpu_group device_group rank_in_group ranks",
    "sglang.srt.eplb.eplb_manager:EPLBManager": "_check_rebalance_needed _get_model _rebalance_disabled_reason "
    "_rebalance_num_iterations",
    "sglang.srt.eplb.expert_distribution:_ExpertDistributionRecorderReal": "_current_forward_pass_id "
    "_current_layer_idx _disable_all _expert_location_metadata _reset _single_pass_gatherers dump_record recording",
    "sglang.srt.utils.common:Withable": "value",
    "sglang.srt.eplb.expert_distribution:_SelectExpertsSinglePassGatherer": "_data",
    "sglang.srt.eplb.expert_distribution": "average_utilization_rate_over_window",
    "sglang.srt.eplb.expert_location:ExpertLocationMetadata": "logical_to_all_physical_map "
    "logical_to_all_physical_map_cpu logical_to_all_physical_map_num_valid logical_to_rank_dispatch_physical_map "
    "physical_to_logical_map physical_to_logical_map_cpu",
    "sglang.srt.eplb.expert_location:ModelConfigForExpertLocation": "num_groups num_layers num_logical_experts",
    "sglang.srt.model_executor.forward_batch_info:ForwardBatch": "global_num_token_non_padded_cpu",
    "sglang.srt.model_executor.forward_context:ForwardContext": "moe_num_token_non_padded",
    f"{_MOE}.fused_moe_triton.layer:FusedMoE": "dispatcher is_draft layer_id num_global_routed_experts "
    "num_local_experts runner",
    f"{_MOE}.topk:TopK": "is_draft layer_id topk_config",
    f"{_MOE}.topk:TopKConfig": "num_shared_topk_slots output_format top_k",
    f"{_MOE}.hash_topk:HashTopK": "is_draft layer_id num_shared_topk_slots topk",
    "sglang.srt.models.deepseek_v2:DeepseekV2ForCausalLM": "routed_experts_weights_of_layer",
    "sglang.srt.layers.quantization.modelopt_quant": "_sglang_require_global_experts",
    # PEO
    "sglang.srt.batch_overlap.two_batch_overlap:MaybeTboDeepEPDispatcher": "_inners",
    f"{_MOE}.token_dispatcher.deepep:DeepEPDispatcher": "_get_impl",
    f"{_MOE}.token_dispatcher.deepep:_DeepEPDispatcherImplLowLatency": "_get_buffer overlap_args use_fp8",
    f"{_MOE}.token_dispatcher.deepep:DeepEPLLDispatchOutput": "hidden_states hidden_states_scale masked_m",
    f"{_MOE}.token_dispatcher.deepep:DeepEPLLCombineInput": "hidden_states",
    f"{_MOE}.moe_runner.runner:MoeRunner": "runner_backend",
    f"{_MOE}.utils:MoeRunnerBackend": "is_deep_gemm",
    f"{_MOE}.moe_runner.deep_gemm:DeepGemmMoeQuantInfo": "w13_scale w13_weight w2_scale w2_weight",
    "sglang.srt.layers.quantization.fp8": "w13_weight",
}

DEEP_EP = {"deep_ep:Buffer": "get_comm_stream group low_latency_combine low_latency_dispatch"}
DEEP_GEMM = {"deep_gemm": "get_num_sms set_num_sms"}
NIXL = {
    "nixl_cu12._api:nixl_agent": "add_remote_agent check_xfer_state get_agent_metadata get_new_notifs get_xfer_descs "
    "initialize_xfer register_memory release_xfer_handle send_notif transfer"
}


class Reliance(NamedTuple):
    """Files of the plugin that rely on a table, and what they call the objects it is about; no owners: all others'."""

    table: dict[str, str]
    paths: tuple[str, ...]
    owners: tuple[str, ...] = ()

    def files(self) -> list[PythonFile]:
        return [file for pattern in self.paths for file in plugin_files(pattern)]


RELIANCES = {
    "vllm": Reliance(VLLM, ("engines/vllm/*.py", "engines/peo.py")),
    "sglang": Reliance(SGLANG, ("engines/sglang/*.py",)),
    "deep_ep": Reliance(DEEP_EP, ("peo/cuda.py", "peo/streams.py", "engines/peo.py"), ("_buffer", "buffer")),
    "deep_gemm": Reliance(DEEP_GEMM, ("engines/peo.py",), ("deep_gemm",)),
    "nixl": Reliance(NIXL, ("migration/wires/nixl.py",), ("agent",)),
}
