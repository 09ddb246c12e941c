"""The hooks inside a scheduler: SGLang's EPLB manager, recorder and algorithms, and what else writes weights.

No model and no kernel is hooked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder
from sglang.srt.runtime_context import get_exec

from ...errors import PluginError, stop
from .. import hooks
from ..hooks import Hook
from .dispatch_hook import REMAP
from .lent_layout import LAYOUT
from .state import get_adapter
from .support import AFFINITY
from .tables import dispatch_table

_PLUGIN = object()  # stands for a member of SGLang's closed enumeration of algorithms


def _init_gatherer(original: Callable[..., Any], expert_location_metadata: Any, rank: int) -> Any:
    """Under DeepEP's `auto` a pass is of either kind, and SGLang has no count for that; what is routed, both show."""
    moe = get_exec().moe
    mode = (moe.moe_a2a_backend, moe.deepep_mode, moe.expert_distribution_recorder_mode)
    if mode == ("deepep", "auto", "stat"):
        from sglang.srt.eplb.expert_distribution import _SelectExpertsSinglePassGatherer

        return _SelectExpertsSinglePassGatherer(expert_location_metadata, rank)
    return original(expert_location_metadata, rank)


def _manager_init(original: Callable[..., Any], self: Any, **collaborators: Any) -> None:
    original(self, **collaborators)
    try:
        hooks.verify(WORKER_HOOKS)
    except PluginError as error:
        stop(error)
    get_adapter().manage(self)


def _prepare_moe_topk(original: Callable[..., Any], *, model: Any, model_config: Any) -> None:
    original(model=model, model_config=model_config)
    try:
        get_adapter().attach(model)
    except PluginError as error:
        stop(error)


def _on_forward_pass_start(original: Callable[..., Any], self: Any, forward_batch: Any) -> None:
    get_adapter().begin_pass(forward_batch)
    original(self, forward_batch)


def _on_select_experts(original: Callable[..., Any], self: Any, topk_ids: torch.Tensor) -> None:
    if get_adapter().stage(self, topk_ids):
        original(self, topk_ids)


def _on_forward_pass_end(original: Callable[..., Any], self: Any) -> None:
    get_adapter().end_pass(get_global_expert_distribution_recorder().recording)
    original(self)  # a rebalance begins or ends in it
    get_adapter().count_next()


def _rebalance(original: Callable[..., Any], self: Any) -> Iterator[None]:
    if self._rebalance_disabled_reason is not None:
        return iter(original(self))  # which only says so
    return get_adapter().rebalance()


def _begin_loading(original: Callable[..., Any], self: Any) -> Any:
    get_adapter().load(True)
    return original(self)


def _end_loading(original: Callable[..., Any], self: Any, *, run_post_load: bool) -> Any:
    try:
        return original(self, run_post_load=run_post_load)
    finally:
        get_adapter().load(False)


def _load(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    get_adapter().load(True)
    try:
        return original(self, *args, **kwargs)
    finally:
        get_adapter().load(False)


def _compute_algorithm(original: Callable[..., Any], raw_algorithm: str, num_groups: Any, num_nodes: int) -> Any:
    return _PLUGIN if raw_algorithm == AFFINITY else original(raw_algorithm, num_groups, num_nodes)


def _rebalance_experts(
    original: Callable[..., Any],
    tokens_per_expert: torch.Tensor,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,
    num_nodes: int,
    algorithm: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if algorithm is not _PLUGIN:
        return original(
            tokens_per_expert, num_physical_experts, num_local_physical_experts, num_groups, num_nodes, algorithm
        )
    made = get_adapter().place_first(tokens_per_expert.sum(dim=0).cpu().numpy())
    phy2log, log2phy, count = (torch.from_numpy(one).long() for one in (made.phy2log, made.log2phy, made.replica_count))
    return phy2log, log2phy, count


def _compute_dispatch_table(
    original: Callable[..., Any],
    logical_to_all_physical_map: torch.Tensor,
    ep_size: int,
    num_physical_experts: int,
    ep_rank: int,
    seed: int = 42,
) -> torch.Tensor:
    table = dispatch_table(
        logical_to_all_physical_map.cpu().numpy(), get_adapter().topology, ep_rank, num_physical_experts, seed
    )
    return torch.from_numpy(table).to(logical_to_all_physical_map)


_MANAGER = "sglang.srt.eplb.eplb_manager:EPLBManager"
_RECORDER = "sglang.srt.eplb.expert_distribution:_ExpertDistributionRecorderReal"
_ALGORITHMS = "sglang.srt.eplb.eplb_algorithms"
_WEIGHTS = "sglang.srt.model_executor.model_runner_components.weight_updater:WeightUpdater"
_SETTLES = "ends a move that is under way before SGLang writes the weights: staged rows would bring back the old ones"

WORKER_HOOKS = (
    Hook(
        f"{_MANAGER}.__init__",
        "around",
        "verifies that every hook is in force: SGLang only logs those that it could not apply",
        "(self, *, model_config, get_model, get_expert_location_updater, get_expert_backup_client, get_weight_updater)",
        _manager_init,
    ),
    Hook(
        "sglang.srt.eplb.expert_distribution:_SinglePassGatherer.init_new",
        "around",
        "counts with --deepep-mode auto, which SGLang's EPLB refuses: the plugin's own count fits every mode",
        "(expert_location_metadata, rank)",
        _init_gatherer,
    ),
    Hook(
        "sglang.srt.model_executor.model_runner_components.moe_ep_setup:prepare_moe_topk",
        "around",
        "sees the loaded model before graphs are captured, to make the buffers of its MoE layers",
        "(*, model, model_config)",
        _prepare_moe_topk,
    ),
    Hook(
        f"{_RECORDER}._on_forward_pass_start",
        "around",
        "tells the host how many tokens of the coming forward pass are real",
        "(self, forward_batch)",
        _on_forward_pass_start,
    ),
    Hook(
        f"{_RECORDER}.on_select_experts",
        "around",
        "sees the physical top-k ids of every layer with every all-to-all, also where SGLang's own count has none; "
        "spares SGLang that count where the plugin's launch has made it",
        "(self, topk_ids)",
        _on_select_experts,
    ),
    Hook(
        f"{_MANAGER}.on_forward_pass_end",
        "around",
        "counts what a forward pass of the target model routed",
        "(self)",
        _on_forward_pass_end,
    ),
    Hook(
        f"{_MANAGER}.rebalance",
        "around",
        "plans in the background and moves experts with the plugin's shuffler, a little in every forward pass",
        "(self)",
        _rebalance,
    ),
    Hook(
        f"{_ALGORITHMS}:compute_algorithm",
        "around",
        f"knows the name {AFFINITY}, which SGLang's list of algorithms does not",
        "(raw_algorithm, num_groups, num_nodes)",
        _compute_algorithm,
    ),
    Hook(
        f"{_ALGORITHMS}:rebalance_experts",
        "around",
        "plans the initial placement from a file of counts instead of SGLang's algorithms",
        "(tokens_per_expert, num_physical_experts, num_local_physical_experts, num_groups, num_nodes, algorithm)",
        _rebalance_experts,
    ),
    Hook(
        "sglang.srt.eplb.expert_location:compute_logical_to_rank_dispatch_physical_map",
        "replace",
        "makes the same table of --ep-dispatch-algorithm static without a Python loop over ranks",
        "(logical_to_all_physical_map, ep_size, num_physical_experts, ep_rank, seed=42)",
        _compute_dispatch_table,
    ),
    Hook(
        f"{_WEIGHTS}.update_weights_from_disk",
        "around",
        _SETTLES,
        "(self, model_path, load_format, weight_name_filter=None, recapture_cuda_graph=False)",
        _load,
    ),
    Hook(f"{_WEIGHTS}.update_weights_from_ipc", "around", _SETTLES, "(self, recv_req)", _load),
    Hook(
        f"{_WEIGHTS}.begin_weight_update",
        "around",
        f"{_SETTLES}; begins a session of loads",
        "(self)",
        _begin_loading,
    ),
    Hook(
        f"{_WEIGHTS}.end_weight_update",
        "around",
        "ends the session in which nothing is moved",
        "(self, *, run_post_load)",
        _end_loading,
    ),
    LAYOUT,
    *REMAP,
)
