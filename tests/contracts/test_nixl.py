"""The NIXL agent that rows travel by where vLLM would use it: as it is installed, parsed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from contracts import check
from contracts.sources import Sources
from contracts.table import RELIANCES
from contracts.uses import Shape

OWN, AGENT = RELIANCES["nixl"], "nixl_cu12._api:nixl_agent"


@pytest.fixture
def nixl() -> Sources:
    try:
        return Sources(Path(str(distribution("nixl-cu12").locate_file(""))))
    except PackageNotFoundError:
        pytest.skip("nixl-cu12 is not installed")


def test_every_call_fits(nixl: Sources) -> None:
    assert check.reads(nixl, OWN.files(), OWN.table) == []


def test_an_agent_is_made_from_its_name_alone(nixl: Sources) -> None:
    assert check.refusal(nixl.signature(f"{AGENT}.__init__"), Shape(1, frozenset(), False), bound=1) == ""
