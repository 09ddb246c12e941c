"""The rule `cover` as its description reads, for one token at a time."""

from __future__ import annotations

from eplb_plugin import Plan


def mixed_slowly(first: int, second: int) -> int:
    state = (first * 2654435769 + second * 2246822519) % 2**32
    state = (state ^ state >> 16) * 0x7FEB352D % 2**32
    state = (state ^ state >> 15) * 0x846CA68B % 2**32
    return state ^ state >> 16


def cover_slowly(plan: Plan, row: list[int], source: int, index: int) -> list[int]:
    topology, held = plan.topology, plan.placement.phy2log[0].tolist()
    node_of = topology.node_of_slot.tolist()
    copies = {e: [slot for slot, there in enumerate(held) if there == e] for e in row if e >= 0}
    nodes = {e: {node_of[slot] for slot in slots} for e, slots in copies.items()}
    needed = {int(topology.node_of_rank[source])}
    needed |= {n for on in nodes.values() if len(on) == 1 for n in on}
    key = mixed_slowly(index, source)
    while left := [e for e in nodes if not nodes[e] & needed]:
        served = {n: sum(n in nodes[e] for e in left) for e in left for n in nodes[e]}
        if max(served.values()) == 1:
            break
        needed.add(max(sorted(served), key=lambda n: (served[n], mixed_slowly(key, n))))
    chosen = []
    for expert in row:
        if expert < 0:
            chosen.append(-1)
            continue
        near = [slot for slot in copies[expert] if node_of[slot] in needed] or copies[expert]
        weights = [int(plan.cover_weights[0, slot]) for slot in near]
        point = mixed_slowly(key, expert + topology.num_nodes) * sum(weights) >> 32
        chosen.append(next(s for i, s in enumerate(near) if point < sum(weights[: i + 1])))
    return chosen
