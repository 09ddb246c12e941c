"""The settings in force in this worker process, from activation until the model is registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config import PluginConfig


@dataclass(frozen=True)
class Active:
    config: PluginConfig
    vllm_config: Any


_active: Active | None = None


def set_active(active: Active) -> None:
    global _active
    _active = active


def get_active() -> Active:
    assert _active is not None, "a runtime hook ran before activate()"
    return _active
