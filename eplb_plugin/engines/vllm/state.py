"""The settings in force in this worker process, and what must end before its memory may go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...settings.config import PluginConfig


@dataclass(frozen=True)
class Active:
    config: PluginConfig
    vllm_config: Any


_active: Active | None = None
_finish: list[Callable[[], None]] = []


def set_active(active: Active) -> None:
    global _active
    _active = active


def get_active() -> Active:
    assert _active is not None, "a runtime hook ran before activate()"
    return _active


def is_active(worker: Any) -> bool:
    """In a worker of vLLM, which calls it for the engine."""
    return _active is not None


def before_sleep(finish: Callable[[], None]) -> None:
    """finish(): collective, ends what still uses the memory of experts."""
    _finish.append(finish)


def finish_all() -> None:
    for finish in _finish:
        finish()
