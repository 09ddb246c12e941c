"""A model as far as vLLM's EPLB goes, on one rank of a group: real EplbState, weights that say what they are."""

from __future__ import annotations

import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from eplb_cpu_engines.vllm import accelerator, routing
from vllm.distributed.eplb import eplb_state
from vllm.distributed.eplb.eplb_state import EplbLayerState, EplbState
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.models.interfaces import MixtureOfExperts
from vllm.v1.worker.cpu_worker import CPUWorker

from eplb_plugin.engines import hooks
from eplb_plugin.engines.vllm import adapter
from eplb_plugin.engines.vllm.state import Active, get_active, set_active
from eplb_plugin.engines.vllm.worker_hooks import WORKER_HOOKS, warm_up_hook
from eplb_plugin.settings.config import parse_config

EXPERTS, REDUNDANT, TOP_K, TOKENS = 12, 4, 2, 40


class Router(BaseRouter):
    routing_method_type = None

    def _compute_routing(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class Experts(torch.nn.Module):
    """Parameters whose rows are filled with a number of layer and logical expert."""

    def __init__(self, seed: int, slots: range, quant_method: Any) -> None:
        super().__init__()
        self.local_num_experts, self.quant_method, self.seed = len(slots), quant_method, seed
        for name, shape in (("w13_weight", (6, 4)), ("w2_weight", (4, 3)), ("w13_weight_scale", (2,))):
            rows = torch.stack([self.row(slot % EXPERTS, name, shape) for slot in slots])
            self.register_parameter(name, torch.nn.Parameter(rows, requires_grad=False))

    def row(self, expert: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {expert} {name}".encode()))
        return torch.rand(shape, generator=generator)

    def get_expert_weights(self) -> list[torch.Tensor]:
        return [one.view(self.local_num_experts, -1) for one in self.parameters()]

    def check(self, experts: list[int]) -> None:
        for name, parameter in self.named_parameters():
            for slot, expert in enumerate(experts):
                assert torch.equal(parameter[slot], self.row(expert, name, parameter.shape[1:])), (name, slot, expert)


class Model(MixtureOfExperts):
    def __init__(self, layers: int, seed: int, quant_method: Any = None, all_to_all: bool = True) -> None:
        ranks, rank = dist.get_world_size(), dist.get_rank()
        self.num_moe_layers, self.num_expert_groups = layers, 1
        self.num_logical_experts = self.num_routed_experts = EXPERTS
        self.num_redundant_experts, self.num_physical_experts = REDUNDANT, EXPERTS + REDUNDANT
        self.num_shared_experts = 0
        own = self.num_local_physical_experts = self.num_physical_experts // ranks
        slots = range(rank * own, (rank + 1) * own)
        parallel = SimpleNamespace(
            use_all2all_kernels=all_to_all, is_sequence_parallel=False, ep_rank=rank, ep_size=ranks
        )
        self.moe_layers = []
        for layer in range(layers):
            values = {
                "layer_id": layer,
                "layer_name": f"layers.{layer}.experts",
                "router": Router(TOP_K, EXPERTS, EplbLayerState()),
                "moe_config": SimpleNamespace(moe_parallel_config=parallel),
                "routed_experts": Experts(100 * seed + layer, slots, quant_method),
                "is_monolithic": False,
                "do_naive_dispatch_combine": False,
            }
            runner = type("Runner", (MoERunner,), values)
            self.moe_layers.append(runner.__new__(runner))


class Config(SimpleNamespace):
    def compute_hash(self) -> str:
        return str(self.model)


class Engine:
    """What vLLM's model runner does for EPLB: registers models, routes, steps."""

    def __init__(
        self, use_async: bool, drafts: int = 0, interval: int = 4, all_to_all: bool = True, warm: bool = True,
        **settings: Any,
    ) -> None:  # fmt: skip
        """all_to_all: without one, all ranks route the same tokens. warm: vLLM's worker has warmed up."""
        _prepare()
        chosen = {"topology": {"nodes": 2}, "forecast_windows": 1, "sample_rows": 256, "dispatch": "hash", **settings}
        eplb = SimpleNamespace(
            use_async=use_async, window_size=2, step_interval=interval, policy="default", communicator="torch_gloo",
            log_balancedness_interval=1, migration_batching_enabled=False,
        )  # fmt: skip
        self.parallel = SimpleNamespace(
            eplb_config=eplb, tensor_parallel_size=1, num_ubatches=0, enable_elastic_ep=False, data_parallel_size=1
        )
        scheduler = SimpleNamespace(max_num_batched_tokens=TOKENS)
        vllm_config = SimpleNamespace(
            parallel_config=self.parallel,
            scheduler_config=scheduler,
            kv_transfer_config=None,
            speculative_config=SimpleNamespace(draft_model_config=None),
        )
        set_active(Active(parse_config(chosen, "test"), vllm_config))
        self.state = EplbState(self.parallel, torch.device("cpu"))
        self.models: dict[str, Model] = {}
        self.configs: dict[str, Config] = {}  # vLLM knows them by their address
        for draft in range(drafts):  # as vLLM does: before the target
            self._add(f"draft{draft}", Model(1, 7 + draft), "draft")
        self._add("target", Model(3, 1, all_to_all=all_to_all), None)
        self.state.start_async_loop()
        if warm:
            self.warm_up()
        self.adapter = self.state._eplb_plugin_adapter
        self.random = np.random.default_rng(dist.get_rank())
        self.steps = 0
        dist.barrier()  # compiling takes one rank longer than votes may

    def warm_up(self) -> None:
        """What vLLM's worker does before it serves, by its own method as far as a CPU goes."""
        runner = SimpleNamespace(kv_caches=[None], eplb_state=self.state)
        seconds = SimpleNamespace(compilation_time=0.0, encoder_compilation_time=0.0)
        CPUWorker.compile_or_warm_up_model(
            SimpleNamespace(
                model_runner=runner, model_config=SimpleNamespace(seed=0), compilation_config=seconds,
                parallel_config=SimpleNamespace(data_parallel_index=0),
            )
        )  # fmt: skip

    def _add(self, key: str, model: Model, name: str | None) -> None:
        self.models[key] = model
        self.configs[key] = Config(model=key)
        if name is not None:
            get_active().vllm_config.speculative_config.draft_model_config = self.configs[key]
        self.state.add_model(model, self.configs[key], name)

    def step(self, tokens: int = TOKENS) -> None:
        """One forward pass and what follows it; without tokens, a dummy step. Checks all weights and maps after it."""
        self.steps += 1
        for key, model in self.models.items():
            self.state.prepare_forward(self.configs[key], tokens, None)
            phy2log = self.state.model_states[key].physical_to_logical_map
            for index, layer in enumerate(model.moe_layers):
                logical = torch.from_numpy(self.routed(index)[: tokens or TOKENS].copy()).int()
                assert torch.equal(phy2log[index][layer.router._apply_eplb_mapping(logical).long()], logical.long())
        self.state.step(is_dummy=tokens == 0)
        self.check()

    def routed(self, layer: int) -> np.ndarray:
        """[TOKENS, TOP_K] experts that this rank's tokens choose in the coming step."""
        popular = (np.arange(EXPERTS) * 5 + self.steps // 10 + layer) % EXPERTS
        return np.argsort(self.random.exponential(size=(TOKENS, EXPERTS)) * (1 + popular), axis=1)[:, :TOP_K]

    def check(self) -> None:
        """Every row is what the maps say, and the maps are the same on all ranks."""
        rank, maps = dist.get_rank(), []
        for key, model in self.models.items():
            phy2log = self.state.model_states[key].physical_to_logical_map
            maps.append(phy2log.flatten())
            own = model.num_local_physical_experts
            for row, layer in zip(phy2log.tolist(), model.moe_layers, strict=True):
                layer.routed_experts.check(row[rank * own : (rank + 1) * own])
        found = torch.cat(maps)
        everywhere = [torch.empty_like(found) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, found)
        assert all(torch.equal(found, other) for other in everywhere), "ranks are on different maps"

    def placed(self, key: str) -> Any:
        return self.state.model_states[key].physical_to_logical_map.numpy().copy()


_group: Any = None


def _prepare() -> None:
    """Once in a process: the parts of the CPU test bed that EPLB needs, our hooks, and groups of all ranks."""
    global _group
    if _group is not None:
        return
    accelerator.install()
    routing.install()
    hooks.apply([*WORKER_HOOKS, warm_up_hook("vllm.v1.worker.cpu_worker.CPUWorker")])
    groups = {
        name: SimpleNamespace(
            device_group=dist.new_group(), cpu_group=dist.new_group(),
            rank_in_group=dist.get_rank(), world_size=dist.get_world_size(), ranks=list(range(dist.get_world_size())),
        )
        for name in ("get_ep_group", "get_eplb_group")
    }  # fmt: skip
    for module in (adapter, eplb_state):
        for name, group in groups.items():
            setattr(module, name, lambda group=group: group)
    _group = groups
