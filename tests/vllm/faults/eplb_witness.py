"""A witness in every worker, where EPLB_WITNESS names a folder: do the weights fit the maps, and the maps each other?

After every step that changed a model's map, each rank compares the bytes of all its experts in the changed layers with
what their logical experts were when the model was loaded, and writes one line: step, model, sum of the map, verdict.
"""

from __future__ import annotations

import functools
import os
import zlib
from pathlib import Path
from typing import Any

FOLDER = "EPLB_WITNESS"


def register() -> None:
    if FOLDER not in os.environ:
        return
    from vllm.distributed.eplb.eplb_state import EplbState

    EplbState.add_model = _introduced(EplbState.add_model)
    EplbState.step = _watched(EplbState.step)


def _introduced(original: Any) -> Any:
    @functools.wraps(original)
    def add_model(self: Any, model: Any, model_config: Any, **name: Any) -> None:
        original(self, model, model_config, **name)
        state = self.model_states[model_config.compute_hash()]
        if not hasattr(self, "witness"):
            self.witness = Witness()
        self.witness.know(model_config.compute_hash(), state)

    return add_model


def _watched(original: Any) -> Any:
    @functools.wraps(original)
    def step(self: Any, is_dummy: bool = False, is_profile: bool = False, log_stats: bool = False) -> None:
        original(self, is_dummy, is_profile, log_stats)
        self.witness.look(self.model_states)

    return step


class Witness:
    def __init__(self) -> None:
        from vllm.distributed.parallel_state import get_ep_group

        self.group = get_ep_group()
        self.file = Path(os.environ[FOLDER]) / f"rank{self.group.rank_in_group}"
        self.file.parent.mkdir(exist_ok=True)
        self.steps = 0
        self.maps: dict[str, Any] = {}
        self.sums: dict[str, list[dict[int, int]]] = {}

    def know(self, key: str, state: Any) -> None:
        import torch.distributed as dist

        own = [self._rows(state, layer) for layer in range(len(state.physical_to_logical_map))]
        ranks: list[Any] = [None] * self.group.world_size
        dist.all_gather_object(ranks, own, group=self.group.cpu_group)
        self.maps[key] = state.physical_to_logical_map.cpu().clone()
        everywhere = [[row for rank in layer for row in rank] for layer in zip(*ranks, strict=True)]
        self.sums[key] = [
            dict(zip(m.tolist(), s, strict=True)) for m, s in zip(self.maps[key], everywhere, strict=True)
        ]
        assert all(len(set(one.values())) == len(one) for one in self.sums[key]), "experts that look alike"

    def look(self, states: dict[str, Any]) -> None:
        self.steps += 1
        for number, (key, state) in enumerate(states.items()):
            found = state.physical_to_logical_map.cpu()
            changed = (found != self.maps[key]).any(dim=1).nonzero().flatten().tolist()
            if not changed:
                continue
            self.maps[key] = found.clone()
            verdict = " ".join(self._wrong(key, state, layer) for layer in changed).strip() or "right"
            with self.file.open("a") as stream:
                print(self.steps, number, zlib.crc32(found.numpy().tobytes()), len(changed), verdict, file=stream)

    def _wrong(self, key: str, state: Any, layer: int) -> str:
        rows = self._rows(state, layer)
        first = self.group.rank_in_group * len(rows)
        experts = self.maps[key][layer, first : first + len(rows)].tolist()
        return " ".join(
            f"WRONG layer {layer} slot {slot} expert {expert}"
            for slot, (expert, row) in enumerate(zip(experts, rows, strict=True))
            if self.sums[key][layer][expert] != row
        )

    def _rows(self, state: Any, layer: int) -> list[int]:
        """The bytes of every expert of this rank, as one number."""
        tensors = [tensor.detach().numpy() for tensor in state.model.expert_weights[layer]]
        return [functools.reduce(lambda sum_, one: zlib.crc32(one[slot].tobytes(), sum_), tensors, 0)
                for slot in range(len(tensors[0]))]  # fmt: skip
