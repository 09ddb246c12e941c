"""Attributes of SGLang's objects that the adapter reads: by class, as it stands in the release that is supported.

As in vLLM's `reads`: a module in the place of a class stands for what it sets on objects of other classes.
"""

from __future__ import annotations

_ARGS, _MOE = "sglang.srt.arg_groups.fields", "sglang.srt.layers.moe"
READS = {
    f"{_ARGS}.exec_:ExecMoe": "deepep_mode elastic_ep_backend enable_eplb ep_dispatch_algorithm "
    "ep_num_redundant_experts eplb_algorithm eplb_min_rebalancing_utilization_threshold "
    "eplb_rebalance_layers_per_chunk expert_distribution_recorder_buffer_size expert_distribution_recorder_mode "
    "init_expert_location moe_a2a_backend",
    f"{_ARGS}.exec_:ExecOverlap": "enable_two_batch_overlap",
    f"{_ARGS}.exec_:ExecGraph": "cuda_graph_config",
    "sglang.srt.model_executor.cuda_graph_config:CudaGraphConfig": "prefill",
    "sglang.srt.model_executor.cuda_graph_config:PhaseConfig": "backend",
    f"{_ARGS}.device:Device": "watchdog_timeout",
    f"{_ARGS}.model:Model": "weight_cache_mode",
    f"{_ARGS}.parallel:Parallel": "attn_cp_size enable_dp_attention "
    "enable_dp_attention_local_control_broadcast enable_prefill_cp ep_size node_rank pp_size tp_size",
    f"{_ARGS}.schedule:Schedule": "chunked_prefill_size max_prefill_tokens max_running_requests",
    f"{_ARGS}.spec:Spec": "speculative_num_draft_tokens",
    f"{_ARGS}.disagg:Disagg": "disaggregation_mode enable_pdmux",
    f"{_ARGS}.lora:Lora": "enable_lora lora_paths",
    f"{_ARGS}.exec_": "graph moe overlap",
    "sglang.srt.runtime_context": "attn_dp_size moe_ep_size",
    "sglang.srt.configs.model_config:ModelConfig": "hf_config model_path",
    "sglang.srt.distributed.parallel_state:GroupCoordinator": "cpu_group device_group rank_in_group ranks",
    "sglang.srt.eplb.eplb_manager:EPLBManager": "_check_rebalance_needed _entrypoint _get_model _main_generator "
    "_rebalance_disabled_reason _rebalance_num_iterations",
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
}

PEO_READS = {
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
