"""One SGLang scheduler's life in every process of a group, as `ModelRunner` leads it, with SGLang's own classes.

What stands in: the model (its routers are SGLang's, its expert weights hold their logical number) and, with an
all-to-all backend, the dispatcher, which needs a GPU and here only reports counts to SGLang's recorder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

LAYERS, EXPERTS, TOP_K, REDUNDANT, PADDING = 4, 16, 3, 4, 5
ON_CPU = {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_PLUGINS": "eplb_plugin"}  # read when SGLang is imported
MOE_LAYERS = [1, 2, 3]  # the first decoder layer is dense
MODEL = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "moe_intermediate_size": 16, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K,
    "norm_topk_prob": True, "max_position_embeddings": 64, "mlp_only_layers": [0], "dtype": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """settings: the plugin's, as JSON, of every rank. options: of SGLang, beside those that all tests share.

    canary: SGLang's check of every slot after every move.
    """

    folder: str
    settings: list[dict[str, Any] | None]
    options: dict[str, Any] = field(default_factory=dict)
    canary: bool = False


def model_folder(path: Path) -> str:
    (path / "config.json").write_text(json.dumps(MODEL))
    return str(path)


class Scheduler:
    """Made on every rank. Raises what SGLang raises; the plugin ends the process (SystemExit) where it refuses.

    backend: of the groups for what lies on the device; one is made with `_enter`, called before SGLang is imported.
    """

    backend, device = "gloo", "cpu"

    def _enter(self) -> None: ...

    def _prepare(self) -> None:
        """Settings are published, nothing lies on a device yet."""

    def seen(self, tensor: Any) -> Any:
        """Its memory, without a word to the device."""
        return tensor

    def __init__(self, start: Start) -> None:
        import torch
        import torch.distributed as dist

        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        settings = start.settings[self.rank]
        os.environ |= ON_CPU | {"SGLANG_EXPERT_LOCATION_UPDATER_CANARY": str(int(start.canary))}
        if settings is not None:
            os.environ["EPLB_PLUGIN_CONFIG"] = json.dumps(settings)
        self._enter()
        from eplb_cpu_engines.sglang import device

        device.install()
        from sglang.srt.plugins import load_plugins

        load_plugins()
        self._configure(start)
        self._prepare()
        from sglang.srt.distributed.parallel_state import init_distributed_environment, initialize_model_parallel

        init_distributed_environment(self.ranks, self.rank, local_rank=self.rank, backend=self.backend)
        initialize_model_parallel(backend=self.backend)
        from sglang.srt.configs.model_config import ModelConfig
        from sglang.srt.eplb import expert_location
        from sglang.srt.eplb.eplb_manager import EPLBManager
        from sglang.srt.eplb.expert_distribution import (
            ExpertDistributionRecorder,
            set_global_expert_distribution_recorder,
        )
        from sglang.srt.eplb.expert_location_updater import ExpertLocationUpdater
        from sglang.srt.model_executor.model_runner_components import moe_ep_setup

        config = ModelConfig(start.folder)
        # SGLang would import every model that it has, to ask the class of this one
        expert_location.ModelConfigForExpertLocation.from_model_config = staticmethod(
            lambda model_config: expert_location.ModelConfigForExpertLocation(LAYERS, EXPERTS)
        )
        self.metadata = expert_location.compute_initial_expert_location_metadata(config, self.rank)
        expert_location.set_global_expert_location_metadata(self.metadata)
        self.recorder = ExpertDistributionRecorder.init_new(self.metadata, self.rank)
        set_global_expert_distribution_recorder(self.recorder)
        updater = ExpertLocationUpdater()
        self.manager = EPLBManager(
            model_config=config,
            get_model=lambda: self.model,
            get_expert_location_updater=lambda: updater,
            get_expert_backup_client=lambda: None,
            get_weight_updater=lambda: SimpleNamespace(update_weights_from_disk=None),
        )
        self.reloads = 0
        self.model = self._model()
        moe_ep_setup.prepare_moe_topk(model=self.model, model_config=config)
        self._passes = 0
        self._torch = torch

    def _configure(self, start: Start) -> None:
        from sglang.srt.runtime_context import SpawnRanks, publish
        from sglang.srt.server_args import ServerArgs

        options = {"model_path": start.folder, "device": "cpu", "attention_backend": "torch_native",
                   "sampling_backend": "pytorch", "grammar_backend": "none", "dtype": "float32", "tp_size": self.ranks,
                   "ep_size": self.ranks, "enable_eplb": True, "eplb_algorithm": "affinity",
                   "ep_num_redundant_experts": REDUNDANT, "eplb_rebalance_num_iterations": 4,
                   "chunked_prefill_size": 64, "max_running_requests": 8}  # fmt: skip
        args = ServerArgs(**(options | start.options))
        args.resolve_once()
        publish(args, role="scheduler", ranks=SpawnRanks(world_rank=self.rank))

    def _model(self) -> Any:
        import torch
        from sglang.srt.layers.moe.topk import TopK

        model = torch.nn.Module()
        model.routers = torch.nn.ModuleList([TopK(TOP_K, layer_id=layer) for layer in MOE_LAYERS])
        model.experts = torch.nn.ModuleList([self._experts(layer) for layer in MOE_LAYERS])
        model.routed_experts_weights_of_layer = {
            one.layer_id: [one.w13_weight.data, one.w2_bias.data] for one in model.experts
        }
        return model

    def _experts(self, layer: int, columns: int = 3) -> Any:
        """SGLang's module without its kernels: a slot of shared experts follows those of routed ones."""
        import torch
        from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

        made = FusedMoE.__new__(FusedMoE)
        torch.nn.Module.__init__(made)
        slots = (EXPERTS + REDUNDANT) // self.ranks
        made.layer_id, made.is_draft, made._num_global_routed = layer, False, EXPERTS + REDUNDANT
        made.num_local_experts = slots + 1
        marks = torch.cat([self._marks(layer), torch.tensor([-7.0])])
        for name, shape in (("w13_weight", (2, columns)), ("w2_bias", ())):
            tensor = marks.reshape(-1, *(1 for _ in shape)).repeat(1, *shape)
            made.register_parameter(name, torch.nn.Parameter(tensor.to(self.device), requires_grad=False))
        made.register_buffer("w2_input_scale", torch.tensor([float(self.rank)]).to(self.device).expand(slots + 1))
        return made

    def _marks(self, layer: int) -> Any:
        """[slots] what the experts of this rank hold, by the map in force."""
        slots = (EXPERTS + REDUNDANT) // self.ranks
        held = self.metadata.physical_to_logical_map_cpu[layer, self.rank * slots :][:slots]
        return (held + 100 * layer + 1000 * self.reloads).float()

    def reload(self, columns: int = 3) -> None:
        """SGLang writes new weights in a session, into tensors that it makes anew, as some quantisations do."""
        from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater

        fields = {name: None for name in WeightUpdater.__dataclass_fields__ if not name.startswith("_")}
        updater = WeightUpdater(**(fields | {"device": "cpu", "get_model": lambda: self.model}))
        updater.begin_weight_update()
        self.reloads += 1
        for old in self.model.experts:
            fresh = self._experts(old.layer_id, columns)
            old.w13_weight, old.w2_bias = fresh.w13_weight, fresh.w2_bias
        updater.end_weight_update(run_post_load=False)

    def weights_are_right(self) -> bool:
        """Every slot of this rank holds the weights of the expert that the map says; the shared expert's stay."""
        return all(
            bool((tensor[:-1] == self._marks(one.layer_id).reshape(-1, *[1] * (tensor.dim() - 1))).all())
            and bool((tensor[-1] == -7).all())
            for one in self.model.experts
            for tensor in (self.seen(one.w13_weight.data), self.seen(one.w2_bias.data))
        )

    def forward(self, ids: np.ndarray, batches: int = 1) -> None:
        """A pass of the target model. ids: [MoE layers, T, K] logical experts; rows of padding follow them.

        batches: micro-batches, equal in size, that the layers route one after the other.
        """
        with self.running(ids.shape[1] // batches):
            for part in np.split(ids, batches, axis=1):
                self.route(part)
        self.manager.on_forward_pass_end()

    @contextmanager
    def running(self, tokens: int) -> Iterator[None]:
        from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

        self._passes += 1
        bound = self._torch.tensor(tokens, dtype=self._torch.int32).to(self.device)
        # of the whole batch: attention on several ranks leaves each a part of its tokens
        batch = SimpleNamespace(global_num_token_non_padded_cpu=3 * tokens)
        with (
            self.recorder.with_forward_pass(self._passes, batch),
            forward_context(ForwardContext(attn_backend=None, moe_num_token_non_padded=lambda: bound)),
        ):
            yield

    def route(self, ids: np.ndarray) -> None:
        """SGLang's routers choose these experts, and others for the padding."""
        torch = self._torch
        random = np.random.default_rng(self._passes)
        rows = random.permuted(np.tile(np.arange(EXPERTS), (PADDING, 1)), axis=1)[:, :TOP_K]
        self.routed = []  # of every layer, without padding: [T, K] logical and physical ids
        for router, chosen in zip(self.model.routers, ids, strict=True):
            logits = torch.zeros(len(chosen) + PADDING, EXPERTS)
            logits.scatter_(1, torch.from_numpy(np.concatenate([chosen, rows])).long(), 5.0)
            hidden, logits = torch.zeros(len(logits), 32).to(self.device), logits.to(self.device)
            with self.recorder.with_current_layer(router.layer_id):
                output = router(hidden_states=hidden, router_logits=logits)
                self._report_dispatch(self.seen(output.topk_ids))
            self.routed.append((chosen, self.seen(output.topk_ids)[: len(chosen)].numpy().copy()))

    def _report_dispatch(self, physical_ids: Any) -> None:
        """What DeepEP tells SGLang's recorder: how many tokens came for each slot of this rank (here: of its own)."""
        from sglang.srt.runtime_context import get_exec

        slots = (EXPERTS + REDUNDANT) // self.ranks
        counts = physical_ids[physical_ids >= 0].bincount(minlength=slots * self.ranks)[slots * self.rank :][:slots]
        if get_exec().moe.moe_a2a_backend == "none":
            return
        if get_exec().moe.deepep_mode == "normal":
            self.recorder.on_deepep_dispatch_normal(counts.tolist(), None, None, None)
        else:
            self.recorder.on_deepep_dispatch_low_latency(counts.int())
