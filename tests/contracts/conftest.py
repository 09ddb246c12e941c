"""Wheels that users install, unpacked; where none can be downloaded the tests are skipped, but not in CI."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from contracts.sources import Sources
from contracts.wheels import WheelMissing, unpacked


@pytest.fixture(scope="session")
def wheel() -> Callable[[str, str], Sources]:
    @cache  # parsed once
    def get(name: str, version: str) -> Sources:
        try:
            return Sources(unpacked(name, version))
        except WheelMissing as error:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))

    return get


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Sources]:
    """The same sources with one file changed, as another release may have it."""

    def change(sources: Sources, name: str, old: str, new: str) -> Sources:
        text = next(root / name for root in sources.roots if (root / name).exists()).read_text()
        assert old in text
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace(old, new))
        return Sources(tmp_path, *sources.roots)

    return change
