"""The plugin of this scheduler process, from activation on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapter import Adapter

_adapter: Adapter | None = None


def set_adapter(adapter: Adapter | None) -> None:
    global _adapter
    _adapter = adapter


def get_adapter() -> Adapter:
    assert _adapter is not None, "a runtime hook ran before activate()"
    return _adapter
