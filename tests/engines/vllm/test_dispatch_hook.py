"""Where vLLM maps logical to physical ids, by its own classes: its routers, and the MegaMoE layers that have none."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from eplb_cpu_engines.vllm import routing
from vllm.distributed.eplb.eplb_state import EplbLayerState
from vllm.forward_context import DPMetadata, ForwardContext, override_forward_context
from vllm.model_executor.layers.fused_moe.router import base_router
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

from eplb_plugin import Placement, Plan, PluginError, Topology, route, route_step
from eplb_plugin.engines import hooks
from eplb_plugin.engines.exchange import Exact
from eplb_plugin.engines.vllm import dispatch_hook
from eplb_plugin.engines.vllm.dispatch_hook import ROUTER, MappedLayer, largest_batch, register
from eplb_plugin.engines.vllm.moe_layers import inspect_layers, left_behind, movable
from eplb_plugin.engines.vllm.tables import Tables
from eplb_plugin.recording.recorder import Recorder

EXPERTS, TOP_K, TOKENS, RANK = 16, 4, 40, 2
TOPOLOGY = Topology(2, 2, 6)
START = Placement(np.tile(np.arange(24, dtype=np.int32) % EXPERTS, (2, 1)))
NAME = "eplb_map_to_physical_and_record"
MEGA_MOE = {"vllm.models.deepseek_v4.nvidia.model": "DeepseekV4MegaMoEExperts",
            "vllm.models.kimi_k3.nvidia.model": "KimiK3MegaMoEExperts"}  # fmt: skip


class Router(BaseRouter):
    """vLLM's own, but for the choice of experts."""

    routing_method_type = None
    chosen: torch.Tensor

    def _compute_routing(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(self.chosen.shape), self.chosen


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU, vLLM's function maps nothing: the test bed's does. Hooks are taken off again."""
    monkeypatch.setattr(dispatch_hook, "_layers", {})
    monkeypatch.setattr(base_router, NAME, routing.map_to_physical_and_record)
    hooks.apply([ROUTER])
    yield
    hooks.remove([ROUTER])


def random_ids(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.argsort(np.random.default_rng(seed).random((TOKENS, EXPERTS)), axis=1)[:, :TOP_K])


def others_are_idle(mine: torch.Tensor) -> torch.Tensor:
    told = mine.new_zeros(TOPOLOGY.num_ranks, len(mine))
    told[RANK] = mine
    return told


class Model:
    """Two layers' states, as vLLM's EplbState makes them, with the plugin's tables for a rule, and a recorder."""

    def __init__(self, rule: str, owners: list[int], min_tokens: int = 0) -> None:
        weights = np.tile(np.arange(24, dtype=np.int32) % 7 + 1, (2, 1))
        self.plan = Plan(START, TOPOLOGY, rule, np.full((2, 24), 0.5), 0.0, cover_weights=weights)
        self.states = [EplbLayerState(), EplbLayerState()]
        layers = [SimpleNamespace(eplb_state=one, set_eplb_state=one.set_layer_state) for one in self.states]
        self.load = torch.zeros((2, 24), dtype=torch.int32)
        held = SimpleNamespace(
            model=SimpleNamespace(moe_layers=layers),
            physical_to_logical_map=torch.from_numpy(START.phy2log).long(),
            logical_to_physical_map=torch.full((2, EXPERTS, 1024), -1),
            logical_replica_count=torch.ones((2, EXPERTS), dtype=torch.int64),
            expert_load_pass_buffer=self.load,
        )
        self.tables = Tables(self.plan, owners, held, 0.0 if min_tokens else None)
        self.recorder = Recorder(2, EXPERTS, TOP_K, TOKENS, 64, torch.device("cpu"))
        enabled, self.real = torch.tensor(True), torch.tensor(TOKENS, dtype=torch.int32)
        for index, state in enumerate(self.states):
            state.should_record_tensor, state.num_unpadded_tokens_tensors = enabled, [self.real]
            cover = self.tables.cover and self.tables.cover.layer(index)
            exact = self.tables.exact and Exact(self.tables.exact.layer(index), others_are_idle, min_tokens)
            register(state.logical_to_physical_map, MappedLayer(index, self.recorder, 0, cover, exact))

    def routed(self, ids: torch.Tensor, index: int) -> np.ndarray:
        router = Router(TOP_K, EXPERTS, self.states[index])
        router.chosen = ids
        return router.select_experts(torch.ones(len(ids), 1), torch.ones(len(ids), EXPERTS))[1].numpy()

    def counted(self, ids: torch.Tensor, real: int) -> None:
        """After a step of `ids` in both layers: the recorder and vLLM's own count hold the real tokens' alone."""
        self.recorder.expect([real])
        self.recorder.fold()
        expected = torch.bincount(ids[:real].flatten(), minlength=EXPERTS)
        assert self.recorder.load.tolist() == [expected.tolist()] * 2
        assert self.load.sum().item() == 2 * real * TOP_K


@pytest.mark.parametrize("rule", ["hash", "weighted", "cover"])
def test_a_router_maps_by_the_rule_in_force(rule: str) -> None:
    """vLLM's router, every rule: `route`'s slots, and the real tokens are counted by the plugin and by vLLM."""
    model, ids = Model(rule, [RANK]), random_ids(0)
    model.real.fill_(25)
    for index, state in enumerate(model.states):
        router = Router(TOP_K, EXPERTS, state)
        router.chosen = ids
        _, slots = router.select_experts(torch.ones(TOKENS, 1), torch.ones(TOKENS, EXPERTS))
        np.testing.assert_array_equal(slots, route(ids.numpy(), RANK, model.plan, index))
    model.counted(ids, 25)


@pytest.mark.parametrize("rule", ["hash", "weighted", "cover"])
def test_a_row_that_names_an_expert_twice_is_mapped_and_not_counted(rule: str) -> None:
    """The engine computes it, and counts it in its own way; no router made it, so no plan is made for it."""
    model, ids = Model(rule, [RANK]), random_ids(0)
    ids[3] = 0
    for index, state in enumerate(model.states):
        router = Router(TOP_K, EXPERTS, state)
        router.chosen = ids
        _, slots = router.select_experts(torch.ones(TOKENS, 1), torch.ones(TOKENS, EXPERTS))
        np.testing.assert_array_equal(slots, route(ids.numpy(), RANK, model.plan, index))
    model.recorder.expect([TOKENS])
    model.recorder.fold()
    counted = torch.bincount(torch.cat([ids[:3], ids[4:]]).flatten(), minlength=EXPERTS)
    assert model.recorder.totals.tolist() == [[*counted.tolist(), TOKENS - 1, 1]] * 2
    assert model.recorder.num_tokens == TOKENS - 1
    assert model.load.sum().item() == 2 * TOKENS * TOP_K


@pytest.mark.parametrize("rule", ["weighted", "cover"])
def test_windows_of_the_plugin_are_its_own(rule: str) -> None:
    """Between vLLM's windows, which end with a rebalance, weights are solved again: from what is recorded there."""
    model, ids = Model(rule, [RANK]), random_ids(0)
    for state in model.states:
        state.should_record_tensor.fill_(False)
        router = Router(TOP_K, EXPERTS, state)
        router.chosen = ids
        router.select_experts(torch.ones(TOKENS, 1), torch.ones(TOKENS, EXPERTS))
    model.recorder.expect([TOKENS])
    model.recorder.fold()
    assert model.recorder.load.sum(dim=1).tolist() == [TOKENS * TOP_K] * 2
    assert not model.load.any()


def test_a_model_that_is_not_recorded_is_left_to_vllm() -> None:
    """A draft's layers: vLLM's own lookup in the plugin's rows."""
    model, ids = Model("weighted", [RANK]), random_ids(1)
    dispatch_hook._layers.clear()
    router = Router(TOP_K, EXPERTS, model.states[0])
    router.chosen = ids
    _, slots = router.select_experts(torch.ones(TOKENS, 1), torch.ones(TOKENS, EXPERTS))
    np.testing.assert_array_equal(slots, route(ids.numpy(), RANK, model.plan, 0))
    assert not model.recorder.stage.ge(0).any()


def test_without_the_hook_cover_falls_back_to_even_copies() -> None:
    """Whatever looks into vLLM's map under cover finds slots of the right expert, never packed numbers."""
    model, ids = Model("cover", [RANK]), random_ids(2)
    hooks.remove([ROUTER])
    state = model.states[0]
    slots = base_router.eplb_map_to_physical_and_record(
        ids, state.expert_load_view, state.logical_to_physical_map, state.logical_replica_count, torch.tensor(False)
    )
    np.testing.assert_array_equal(START.phy2log[0][slots.numpy()], ids)


@pytest.mark.parametrize("rule", ["hash", "weighted", "cover"])
def test_large_steps_are_evened_out_and_small_ones_follow_the_tables(rule: str) -> None:
    """`route_step`'s slots from `min_tokens` on, `route`'s below; real tokens are counted alike."""
    model, large = Model(rule, [RANK], min_tokens=30), random_ids(5)
    for index in (0, 1):
        slots = model.routed(large[:29], index)
        np.testing.assert_array_equal(slots, route(large[:29].numpy(), RANK, model.plan, index))
    model.recorder.drop()
    model.load.zero_()
    model.real.fill_(25)
    for index in (0, 1):
        expected = route_step(large.numpy(), np.full(TOKENS, RANK), model.plan, index)
        np.testing.assert_array_equal(model.routed(large, index), expected)
    model.counted(large, 25)


@pytest.mark.parametrize(("tokens", "others", "exact"), [(4, 30, True), (29, 29, False), (40, 30, True)])
def test_all_data_parallel_ranks_decide_by_the_largest_batch(tokens: int, others: int, exact: bool) -> None:
    """Of vLLM's own forward context, which idle ranks have too: never by what this rank alone knows."""
    model, ids = Model("hash", [RANK], min_tokens=30), random_ids(6)[:tokens]
    context = ForwardContext({}, {}, {}, dp_metadata=DPMetadata(torch.tensor([tokens, others], dtype=torch.int32)))
    with override_forward_context(context):
        assert largest_batch(ids) == max(tokens, others)
        slots = model.routed(ids, 0)
    expected = route_step(ids.numpy(), np.full(tokens, RANK), model.plan, 0)
    by_tables = route(ids.numpy(), RANK, model.plan, 0)
    assert not np.array_equal(expected, by_tables)
    np.testing.assert_array_equal(slots, expected if exact else by_tables)


class Stop(Exception):
    """Ends a forward pass at the point where physical ids leave for the GPU kernel."""


@pytest.fixture(params=MEGA_MOE)
def mega_moe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A MegaMoE layer of vLLM that was never set up: its forward pass runs until its GPU kernel would."""
    module = importlib.import_module(request.param)
    sent: list[torch.Tensor] = []

    def prepare(hidden: Any, weights: Any, topk_ids: torch.Tensor, *_: Any, **__: Any) -> None:
        sent.append(topk_ids)
        raise Stop

    buffer = SimpleNamespace(**dict.fromkeys(("x", "x_sf", "topk_idx", "topk_weights"), torch.zeros(TOKENS)))
    monkeypatch.setattr(module, "prepare_megamoe_inputs", prepare)
    monkeypatch.setitem(sys.modules, "vllm.utils.deep_gemm", SimpleNamespace(_import_deep_gemm=lambda: None))
    of_class = {
        "synchronize_first_launch": lambda self: None,
        "_ensure_backend": lambda self: SimpleNamespace(hidden_quant=None),
        "get_symm_buffer": lambda self: buffer,
        "has_fused_shared_experts": False,
    }
    kind = type("Layer", (getattr(module, MEGA_MOE[request.param]),), of_class)
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    layer.prefix, layer.capture_fn, layer.max_num_tokens, layer.top_k = "model.layers.3.ffn.experts", None, 64, TOP_K
    layer.experts_start_idx, layer.num_local_experts, layer.sent = 6, 6, sent
    yield layer
    hooks.remove(dispatch_hook.held_by_name())


def forward(layer: Any, ids: torch.Tensor) -> torch.Tensor:
    with pytest.raises(Stop):
        layer.forward(torch.ones(TOKENS, 8), torch.ones(TOKENS, TOP_K), ids, activation_clamp=None)
    return layer.sent[-1]


@pytest.mark.parametrize("rule", ["hash", "weighted", "cover"])
def test_mega_moe_maps_by_the_rule_in_force(rule: str, mega_moe: Any) -> None:
    """vLLM's own forward pass of DeepSeek-V4's and Kimi-K3's layers, up to the GPU kernel."""
    model, ids = Model(rule, [RANK]), random_ids(3)
    dispatch_hook.hook_by_name()
    mega_moe.eplb_state = model.states[1]
    np.testing.assert_array_equal(forward(mega_moe, ids), route(ids.numpy(), RANK, model.plan, 1))
    mega_moe.eplb_state = model.states[0]
    forward(mega_moe, ids)
    model.counted(ids, TOKENS)


def test_mega_moe_unhooked_would_not_be_recorded(mega_moe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's module holds the function by name: hooking the router's module alone does not reach it."""
    model, ids = Model("cover", [RANK]), random_ids(4)
    module = sys.modules[type(mega_moe).forward.__module__]
    monkeypatch.setattr(module, NAME, routing.map_to_physical_and_record)
    mega_moe.eplb_state = model.states[0]
    slots = forward(mega_moe, ids).numpy()
    assert not model.recorder.stage.ge(0).any()
    assert not np.array_equal(slots, route(ids.numpy(), RANK, model.plan, 0))


@pytest.mark.parametrize(("split", "group", "chunk"), [(True, 1, 1), (False, 2, 0)])
def test_mega_moe_layers_are_read(mega_moe: Any, split: bool, group: int, chunk: int) -> None:
    """Number, top-k and state from the layer; who routes the same tokens from the block around it."""
    mega_moe.eplb_state = EplbLayerState()
    model = SimpleNamespace(moe_layers=[mega_moe], moe_mlp_layers=[SimpleNamespace(use_sequence_parallel=split)])
    found = inspect_layers(model, 2)
    assert (found.layer_ids, found.states, found.top_k) == ([3], [mega_moe.eplb_state], TOP_K)
    assert (found.owner_group_size, found.chunk) == (group, chunk)


def test_mega_moe_experts_move_as_what_was_made_of_them(mega_moe: Any) -> None:
    """Their parameters are dropped at load; all four tensors that vLLM's EPLB moves are moved, scales included."""
    made = [torch.randint(0, 255, (6, 4, 8), dtype=torch.uint8) for _ in range(4)]
    made[1] = made[1].transpose(1, 2).contiguous().transpose(1, 2)  # scales lie transposed
    mega_moe._transformed_l1_weights, mega_moe._transformed_l2_weights = tuple(made[:2]), tuple(made[2:])
    before, weights = [one.clone() for one in made], movable(mega_moe)
    rows = torch.zeros(1, weights.row_bytes, dtype=torch.uint8)
    weights.read(torch.tensor([2]), rows)
    weights.write(torch.tensor([5]), rows)
    for now, old in zip(made, before, strict=True):
        assert torch.equal(now[5], old[2])
        assert torch.equal(now[:5], old[:5])


def test_mega_moe_with_a_further_tensor_of_experts_is_refused(mega_moe: Any) -> None:
    """One that stayed behind would describe the old experts."""
    mega_moe._transformed_l1_weights = mega_moe._transformed_l2_weights = (torch.zeros(6, 4), torch.zeros(6, 2))
    mega_moe.register_parameter("w13_bias", torch.nn.Parameter(torch.rand(6, 3)))
    with pytest.raises(PluginError, match=r"model\.layers\.3\.ffn\.experts: .*found \[6, 3\] torch\.float32"):
        left_behind([mega_moe])


def test_mega_moe_of_a_kind_that_no_hook_reaches_is_refused(mega_moe: Any) -> None:
    """Its own forward pass, in a module that maps ids in another way: it would serve, and record nothing."""

    class Other(type(mega_moe)):  # type: ignore[misc]
        def forward(self, *_: Any) -> None:
            """Here no function of that name is held."""

    mega_moe.__class__ = Other
    model = SimpleNamespace(moe_layers=[mega_moe], moe_mlp_layers=[SimpleNamespace(use_sequence_parallel=True)])
    with pytest.raises(PluginError, match=r"layers\.3\.ffn\.experts: found a Other, expected one by eplb_map_to_phys"):
        inspect_layers(model, 2)


def test_mega_moe_that_hides_its_parallelism_is_refused(mega_moe: Any) -> None:
    model = SimpleNamespace(moe_layers=[mega_moe], moe_mlp_layers=[SimpleNamespace()])
    with pytest.raises(PluginError, match="sequence parallelism: found a SimpleNamespace that does not say so"):
        inspect_layers(model, 2)
