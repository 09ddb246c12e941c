"""The table of what the adapter reads, asked of the classes of the installed SGLang."""

from __future__ import annotations

import pytest

pytest.importorskip("sglang")

from eplb_plugin.engines.attributes import missing
from eplb_plugin.engines.sglang.reads import PEO_READS, READS


def test_the_installed_release_has_all_of_them() -> None:
    """PEO's too, whose classes can be imported on a CPU."""
    assert missing({**READS, **PEO_READS}) == []
