"""How long the affinity method searches."""

from __future__ import annotations

from typing import get_args

from eplb_plugin.plan_types import Effort
from eplb_plugin.planning.effort import SEARCHES


def test_thorough_searches_nowhere_less_than_fast() -> None:
    """Every effort has its settings; costs are estimated from tokens that the layer is planned on."""
    assert set(SEARCHES) == set(get_args(Effort))
    thorough, fast = SEARCHES["thorough"], SEARCHES["fast"]
    assert all(more >= less for more, less in zip(thorough, fast, strict=True))
    assert thorough != fast
    assert all(search.guides <= search.repair_rows <= search.rows for search in SEARCHES.values())
