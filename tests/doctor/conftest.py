"""A process with a simulated accelerator, for all checks of the doctor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from processes import Ranks


@pytest.fixture(scope="session")
def device() -> Iterator[Ranks]:
    with Ranks(1, timeout=300.0) as ranks:
        yield ranks
