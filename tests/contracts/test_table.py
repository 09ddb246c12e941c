"""The table of what is relied on is whole: an attribute that it leaves out would be asked of no wheel."""

from __future__ import annotations

import pytest

from contracts import check
from contracts.table import RELIANCES
from contracts.uses import PythonFile


@pytest.mark.parametrize("name", RELIANCES)
def test_every_attribute_that_the_plugin_reads_is_listed(name: str) -> None:
    """Of both engines, `deep_ep`, DeepGEMM and NIXL."""
    assert check.unlisted(RELIANCES[name]) == []


@pytest.mark.parametrize(
    ("name", "listed", "found"), [("vllm", "moe_layers", "vllm/adapter.py"), ("nixl", "transfer", "nixl.py")]
)
def test_a_row_that_is_missing_is_told_with_the_line_that_needs_it(name: str, listed: str, found: str) -> None:
    reliance = RELIANCES[name]
    table = {key: " ".join(set(names.split()) - {listed}) for key, names in reliance.table.items()}
    problems = check.unlisted(reliance._replace(table=table))
    assert problems
    assert all(f"found {listed}, in no table" in one for one in problems)
    assert found in problems[0]
    assert all(one.partition(":")[2][0].isdigit() for one in problems)


@pytest.mark.parametrize("name", RELIANCES)
def test_every_row_is_still_needed(name: str) -> None:
    reliance = RELIANCES[name]
    assert [one for table in (reliance.table, reliance.some) for one in check.unused(reliance.files(), table)] == []


def test_files_of_every_table_are_there() -> None:
    assert all(isinstance(file, PythonFile) for one in RELIANCES.values() for file in one.files())
    assert all(one.files() for one in RELIANCES.values())
