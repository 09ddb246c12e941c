"""A recording of uneven ranks and its survey, made once for all who ask about it."""

from __future__ import annotations

import pytest

from eplb_plugin import RoutingStatistics
from eplb_plugin.observe.advice import Cluster, Survey, survey
from surveys import AFFINITY, BALANCED, recording


@pytest.fixture(scope="session")
def skewed() -> RoutingStatistics:
    return recording(1.35)


@pytest.fixture(scope="session")
def surveyed(skewed: RoutingStatistics) -> Survey:
    return survey(skewed, Cluster(2, 2), [BALANCED, AFFINITY], expert_bytes=1e6)
