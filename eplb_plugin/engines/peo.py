"""PEO in an engine's worker: which layers run in rounds, decided alike on all ranks, and the layer that runs so now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ..errors import PluginError
from ..peo.cuda import RoundBuffer, choose_api
from ..peo.ops import Schedule
from ..peo.protocol import check, check_agreement
from ..peo.schedule import default_num_rounds, make_schedule
from ..peo.streams import CudaStreams, InOrder
from ..settings.sections import PeoConfig

logger = logging.getLogger("eplb_plugin")


class SmLimit(Protocol):
    """Of the module deep_gemm, or of what an engine wraps it in."""

    def get_num_sms(self) -> int: ...

    def set_num_sms(self, num_sms: int) -> None: ...


@dataclass(frozen=True)
class _Layers:
    """How all layers of one buffer and size run. warm: batch sizes that have run outside of a capture."""

    schedule: Schedule
    streams: InOrder
    warm: set[int]


class Peo:
    """One per worker process, as the settings ask for it. An engine's hooks enter `layer` around each MoE layer.

    deep_gemm: what the engine tells DeepGEMM through how many SMs it may use; called where a layer needs it.
    """

    def __init__(self, settings: PeoConfig, deep_gemm: Callable[[], SmLimit]) -> None:
        self.running: RoundBuffer | None = None
        self._settings, self._deep_gemm = settings, deep_gemm
        self._layers: dict[tuple[Any, int], _Layers | None] = {}  # by buffer and local experts
        self._said: set[str] = set()

    @contextmanager
    def layer(self, buffer: Any, num_local_experts: int, num_tokens: int, device: torch.device) -> Iterator[Any]:
        """The buffer that this layer is to use: a RoundBuffer, which is `running` inside, or `buffer` itself.

        A batch size is captured in rounds only after it has run in rounds: captures must not compile GEMMs, and
        engines run every size that they capture before they do.
        """
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        key = buffer, num_local_experts
        if key not in self._layers and not capturing:
            self._layers[key] = self._agreed(buffer, num_local_experts, device)
        layers = self._layers.get(key)
        if layers is None or (capturing and num_tokens not in layers.warm):
            yield buffer
            return
        self.running = RoundBuffer(buffer, layers.schedule, layers.streams, self._limited_gemm_sms)
        try:
            yield self.running
        finally:
            self.running = None
        layers.warm.add(num_tokens)

    @contextmanager
    def _limited_gemm_sms(self, num_sms: int) -> Iterator[None]:
        deep_gemm = self._deep_gemm()
        before = deep_gemm.get_num_sms()
        deep_gemm.set_num_sms(num_sms)
        try:
            yield
        finally:
            deep_gemm.set_num_sms(before)

    def off(self, reason: str) -> None:
        """Say once why layers run as the engine runs them."""
        if reason not in self._said and dist.get_rank() == 0:
            logger.warning("PEO is off: %s", reason)
        self._said.add(reason)

    def _agreed(self, buffer: Any, num_local_experts: int, device: torch.device) -> _Layers | None:
        """Collective over the buffer's ranks, at their first MoE layer: one without PEO and all are without it."""
        schedule, reason = self._own_schedule(buffer, num_local_experts)
        answers: list[Any] = [None] * dist.get_world_size(buffer.group)
        dist.all_gather_object(answers, (schedule, reason), buffer.group)
        for rank, (_, theirs) in enumerate(answers):
            if theirs:
                self.off(theirs if theirs == reason else f"on rank {rank}: {theirs}")
                return None
        assert schedule is not None
        check_agreement([one for one, _ in answers])
        streams = CudaStreams(schedule, buffer, device) if device.type == "cuda" else InOrder()
        if dist.get_rank() == 0:
            line = "PEO: %s in %d rounds of %d local experts (%s API)"
            logger.info(line, schedule.method, schedule.num_rounds, num_local_experts, schedule.api)
        return _Layers(schedule, streams, set())

    def _own_schedule(self, buffer: Any, num_local_experts: int) -> tuple[Schedule | None, str]:
        asked = self._settings
        api, reason = choose_api(buffer, asked.stock_api)
        if api is None:
            return None, reason
        patched = api == "patched"
        try:
            schedule = make_schedule(
                asked.method if patched else "overlap-2",
                num_rounds=asked.num_rounds or default_num_rounds(num_local_experts),
                num_local_experts=num_local_experts,
                num_device_sms=int(self._deep_gemm().get_num_sms()),
                deepep_send_num_sms=asked.deepep_send_num_sms if patched else None,
                deepep_recv_num_sms=asked.deepep_recv_num_sms if patched else None,
                up_deepgemm_num_sms=asked.up_deepgemm_num_sms,
                down_deepgemm_num_sms=asked.down_deepgemm_num_sms,
                api=api,
            )
            check(schedule, num_ranks=dist.get_world_size(buffer.group))
        except PluginError as error:
            return None, str(error)
        return schedule, ""
