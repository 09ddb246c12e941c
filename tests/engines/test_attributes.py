"""What an adapter reads is asked of classes, wherever they declare it, before anything is touched."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import pytest

from eplb_plugin import PluginError
from eplb_plugin.engines import attributes


class Base:
    inherited: int

    def __init__(self) -> None:
        self.set_by_base = 1


class Held(Base):
    bound = 1

    def __init__(self) -> None:
        self.set_here: int = 2
        other = Base()
        other.set_elsewhere = 3  # type: ignore[attr-defined]

    @property
    def computed(self) -> int:
        return 4


class Row(NamedTuple):
    column: int


@dataclass
class Data:
    field: int


@pytest.mark.parametrize(
    ("owner", "names"),
    [("Held", "bound computed inherited set_by_base set_here"), ("Row", "column _replace"), ("Data", "field")],
)
def test_every_way_to_declare_an_attribute_is_seen(owner: str, names: str) -> None:
    """Bound, annotated, a property, set on `self` by a method, of the class or of a base."""
    assert attributes.missing({f"{__name__}:{owner}": names}) == []


def test_what_is_missing_is_named() -> None:
    """One line for each; what a method sets on another object is not the class's own."""
    told = attributes.missing({f"{__name__}:Held": "bound set_elsewhere gone"})
    assert [str(one).partition(", expected")[0] for one in told] == [
        f"{__name__}:Held: found no gone",
        f"{__name__}:Held: found no set_elsewhere",
    ]


def test_a_class_or_a_module_that_is_gone_lacks_all_of_them() -> None:
    assert len(attributes.missing({f"{__name__}:Gone": "one two", "no.such.module:Held": "three"})) == 3


def test_a_module_stands_for_what_it_sets_on_others() -> None:
    """By an assignment or by a word, as registries do; what only is read there does not count."""
    assert attributes.missing({__name__: "set_elsewhere Held of_a_word"}) == []
    assert len(attributes.missing({"eplb_plugin.engines.attributes": "__mro__"})) == 1


WORD = {"name": "registry.of_a_word"}


def test_what_is_not_loaded_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker only classes that are there are asked; all problems are in one line."""
    attributes.refuse_missing({"antigravity:Gone": "gone"})
    assert "antigravity" not in sys.modules
    monkeypatch.setitem(sys.modules, "loaded_here", ModuleType("loaded_here"))
    with pytest.raises(PluginError, match=r"^loaded_here:A: found no one, .*; loaded_here:A: found no two, "):
        attributes.refuse_missing({"loaded_here:A": "one two"})
