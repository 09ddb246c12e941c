"""Attributes of vLLM's objects that the adapter reads: by class, as it stands in every release that is supported.

Hooks state signatures; a release may keep all of them and still lack an attribute. A module in the place of a class
stands for what it sets on objects of other classes. Tests hold the table against the plugin's own lines and against the
wheels of all releases; `compat.py` asks for what only some of them have.
"""

from __future__ import annotations

from .compat import MEGA_MOE

_FUSED = "vllm.model_executor.layers.fused_moe"
READS = {
    "vllm.config.vllm:VllmConfig": "additional_config kv_transfer_config model_config parallel_config scheduler_config "
    "speculative_config weight_transfer_config",
    "vllm.config.parallel:ParallelConfig": "data_parallel_rank data_parallel_size enable_elastic_ep enable_eplb "
    "eplb_config expert_placement_strategy num_ubatches prefill_context_parallel_size rank tensor_parallel_size "
    "use_ubatching worker_cls",
    "vllm.config.parallel:EPLBConfig": "communicator num_redundant_experts step_interval window_size",
    "vllm.config.model:ModelConfig": "compute_hash enable_sleep_mode get_num_experts model",
    "vllm.config.scheduler:SchedulerConfig": "max_num_batched_tokens",
    "vllm.config.speculative:SpeculativeConfig": "draft_model_config",
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
    "vllm.forward_context:ForwardContext": "dp_metadata",
    "vllm.forward_context:DPMetadata": "num_tokens_across_dp_cpu",
    "vllm.distributed.eplb.eplb_state:EplbState": "_should_record_current_step expert_load_window_size "
    "expert_rearrangement_step "
    "expert_rearrangement_step_interval is_async model_states",
    "vllm.distributed.eplb.eplb_state:EplbModelState": "expert_buffer expert_load_pass expert_load_window "
    "logical_replica_count logical_to_physical_map model physical_to_logical_map rebalanced",
    "vllm.distributed.eplb.eplb_state:EplbLayerState": "logical_to_physical_map",
    "vllm.model_executor.models.interfaces:MixtureOfExperts": "expert_weights moe_layers num_expert_groups "
    "num_logical_experts num_moe_layers num_physical_experts",
    "vllm.model_executor.models.interfaces:SupportsMultiModal": "get_language_model",
    f"{_FUSED}.runner.moe_runner:MoERunner": "do_naive_dispatch_combine eplb_state is_monolithic layer_id layer_name "
    "moe_config routed_experts router set_eplb_state",
    f"{_FUSED}.routed_experts:RoutedExperts": "local_num_experts quant_method",
    f"{_FUSED}.router.base_router:BaseRouter": "eplb_state top_k",
    f"{_FUSED}.config:FusedMoEConfig": "moe_parallel_config num_experts num_local_experts num_logical_experts",
    f"{_FUSED}.config:FusedMoEParallelConfig": "ep_rank ep_size is_sequence_parallel use_all2all_kernels",
    "vllm.v1.worker.ubatch_utils:UBatchSlice": "token_slice",
}

# what only some releases have, and `compat` asks for
SOME_READS = {
    "vllm.distributed.eplb.eplb_state:EplbModelState": "expert_load_pass_buffer",
    **{
        f"{kind.module}:{kind.name}": "eplb_state experts_start_idx get_expert_weights layer_id num_local_experts "
        "prefix set_eplb_state top_k"
        for kind in MEGA_MOE
    },
}

# of models that have MegaMoE layers, whose modules are not imported only to ask for them
MODEL_READS = {
    "vllm.models.deepseek_v4.nvidia.model": "use_sequence_parallel",
    "vllm.models.deepseek_v4.nvidia.model:DeepseekV4MixtureOfExperts": "moe_mlp_layers",
}

PEO_READS = {
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
