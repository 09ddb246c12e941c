"""The engines' own ("vanilla") policy: hierarchical where the expert groups divide onto the nodes, else global.

Three steps, each on the heaviest first: groups to nodes, replicas within a node, replicas to the node's ranks.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..counts import checked_counts
from ..errors import mismatch
from ..jit import Array, kernel

Maps = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def rebalance_experts(
    weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Any, Any, Any]:
    """DeepSeek's entry point, same signature and results, for numpy arrays or torch tensors (same kind returned).

    weight: [L, E] load of every expert
    -> phy2log [L, P] expert of every slot; log2phy [L, E, X] slots of every expert in order of creation, padded with
       -1, X = the most copies of any expert; logcnt [L, E] copies. All int64.
    Where the groups do not divide onto the nodes, both are left aside, as the engines do.
    Raises PluginError for what no policy can place.
    """
    torch = sys.modules.get("torch")  # whoever passes a tensor has imported it
    if torch is not None and isinstance(weight, torch.Tensor):
        maps = solve(weight.detach().float().cpu().numpy(), num_replicas, num_groups, num_nodes, num_gpus)
        return tuple(torch.from_numpy(array).to(weight.device) for array in maps)
    return solve(weight, num_replicas, num_groups, num_nodes, num_gpus)


def is_hierarchical(num_groups: int, num_nodes: int) -> bool:
    return num_groups % num_nodes == 0


def solve(weight: ArrayLike, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int) -> Maps:
    """`rebalance_experts` on numpy."""
    load = checked_counts("weight", weight)
    if load.ndim != 2 or load.size == 0:
        raise mismatch(
            "weight",
            found=f"shape {load.shape}",
            expected="numbers [layers, experts]",
            fix="pass a load per layer and expert",
        )
    layers, experts = load.shape
    _check_counts(num_groups=num_groups, num_nodes=num_nodes, num_gpus=num_gpus)
    if not is_hierarchical(num_groups, num_nodes):
        num_groups, num_nodes = 1, 1
    _check(experts, num_replicas, num_groups, num_nodes, num_gpus)
    phy2log = np.empty((layers, num_replicas), np.int64)
    log2phy = np.full((layers, experts, num_replicas - experts + 1), -1, np.int64)
    counts = np.ones((layers, experts), np.int64)
    exact = load.astype(np.float32).astype(np.float64)  # both engines plan on float32 loads
    for layer in range(layers):
        _solve_layer(exact[layer], num_groups, num_nodes, num_gpus, phy2log[layer], log2phy[layer], counts[layer])
    return phy2log, np.ascontiguousarray(log2phy[:, :, : counts.max()]), counts


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise mismatch(name, found=value, expected=">= 1", fix=f"pass the {name} of the deployment")


def _check(experts: int, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int) -> None:
    if num_replicas < experts:
        raise mismatch(
            "num_replicas",
            found=num_replicas,
            expected=f">= {experts} experts",
            fix="give every expert a slot at least",
        )
    for name, value, divisor in (
        ("experts per group", experts, num_groups),
        ("num_gpus per node", num_gpus, num_nodes),
        ("num_replicas per gpu", num_replicas, num_gpus),
    ):
        if value % divisor:
            raise mismatch(
                name,
                found=f"{value} / {divisor}",
                expected="a whole number",
                fix=f"choose counts of which {divisor} is a divisor",
            )


@kernel
def _pack_heaviest_first(weight: Array, packs: int) -> tuple[Array, Array]:
    """Equally many items per pack, always into the lightest with room -> pack and position in it of every item."""
    items = weight.shape[0]
    pack_of, position = np.empty(items, np.int64), np.zeros(items, np.int64)
    size = items // packs
    if size == 1:
        for item in range(items):
            pack_of[item] = item
        return pack_of, position
    total, filled = np.zeros(packs), np.zeros(packs, np.int64)
    for item in np.argsort(-weight, kind="mergesort"):
        lightest = -1
        for pack in range(packs):
            if filled[pack] < size and (lightest < 0 or total[pack] < total[lightest]):
                lightest = pack
        pack_of[item], position[item] = lightest, filled[lightest]
        total[lightest] += weight[item]
        filled[lightest] += 1
    return pack_of, position


@kernel
def _replicate(weight: Array, num_replicas: int) -> tuple[Array, Array, Array]:
    """-> expert and creation number of every replica, copies per expert; next copy where load per copy is largest."""
    experts = weight.shape[0]
    expert_of, number = np.arange(num_replicas), np.zeros(num_replicas, np.int64)
    copies = np.ones(experts, np.int64)
    per_copy = weight.copy()
    for replica in range(experts, num_replicas):
        heaviest = int(np.argmax(per_copy))
        expert_of[replica], number[replica] = heaviest, copies[heaviest]
        copies[heaviest] += 1
        per_copy[heaviest] = weight[heaviest] / copies[heaviest]
    return expert_of, number, copies


@kernel
def solve_global(load: Array, num_slots: int, num_gpus: int) -> Array:
    """load: [E] -> [P] int32: the global policy, for one layer."""
    weight, share = np.empty(load.shape[0]), np.empty(num_slots)
    for expert in range(load.shape[0]):
        weight[expert] = np.float32(load[expert])  # as the engines see it
    expert_of, _, copies = _replicate(weight, num_slots)
    for replica in range(num_slots):
        share[replica] = weight[expert_of[replica]] / copies[expert_of[replica]]
    gpu, position = _pack_heaviest_first(share, num_gpus)
    phy2log = np.empty(num_slots, np.int32)
    for replica in range(num_slots):
        phy2log[gpu[replica] * (num_slots // num_gpus) + position[replica]] = expert_of[replica]
    return phy2log


@kernel
def _solve_layer(
    weight: Array, groups: int, nodes: int, gpus: int, phy2log: Array, log2phy: Array, counts: Array
) -> None:
    group_size = weight.shape[0] // groups
    node_of_group, place_in_node = _pack_heaviest_first(weight.reshape(groups, group_size).sum(axis=1), nodes)
    per_node = weight.shape[0] // nodes
    experts_of_node = np.empty((nodes, per_node), np.int64)
    for group in range(groups):
        start = place_in_node[group] * group_size
        experts_of_node[node_of_group[group], start : start + group_size] = group * group_size + np.arange(group_size)
    slots, gpus_per_node = phy2log.shape[0] // nodes, gpus // nodes
    for node in range(nodes):
        local = weight[experts_of_node[node]]
        expert_of, number, copies = _replicate(local, slots)
        gpu, position = _pack_heaviest_first((local / copies)[expert_of], gpus_per_node)
        for replica in range(slots):
            expert = experts_of_node[node, expert_of[replica]]
            slot = node * slots + gpu[replica] * (slots // gpus_per_node) + position[replica]
            phy2log[slot] = expert
            log2phy[expert, number[replica]] = slot
        counts[experts_of_node[node]] = copies
