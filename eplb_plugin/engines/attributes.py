"""Whether an engine's objects have the attributes that an adapter reads: its classes are asked beforehand."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from ..errors import PluginError, mismatch
from .hooks import OTHER_ENGINE


def missing(table: Mapping[str, str], *, load: bool = True) -> list[PluginError]:
    """table: names of attributes by `module:Class`, or by a module that sets them on whatever objects.

    load: import modules to ask them; else only those are asked that are loaded.
    """
    return [
        mismatch(target, found=f"no {name}", expected=f"{name}, which the plugin reads", fix=OTHER_ENGINE)
        for target, names in table.items()
        if load or target.partition(":")[0] in sys.modules
        for name in _lacking(target, set(names.split()))
    ]


def refuse_missing(table: Mapping[str, str]) -> None:
    """Raises PluginError, which names all of them, if a class that is loaded lacks an attribute."""
    if problems := missing(table, load=False):
        raise PluginError("; ".join(map(str, problems)))


def _lacking(target: str, names: set[str]) -> list[str]:
    try:
        owner = _resolved(target)
    except Exception:  # whatever an engine's module raises while it is imported
        return sorted(names)
    places = [owner] if isinstance(owner, ModuleType) else owner.__mro__
    left = {name for name in names if not any(_declares(place, name) for place in places)}
    for place in places:  # what methods set on `self`: their text is read only where nothing else tells
        left -= _told(place) if left else set()
    return sorted(left)


def _resolved(target: str) -> Any:
    module, _, name = target.partition(":")
    found: Any = importlib.import_module(module)
    return getattr(found, name) if name else found


def _declares(place: Any, name: str) -> bool:
    return name in vars(place) or name in vars(place).get("__annotations__", {})


def _told(place: Any) -> set[str]:
    """Attributes that a class sets on `self`; that a module sets on anything, or names in a word as registries do."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(place)))
    except (OSError, TypeError):  # what is not written in Python
        return set()
    return {*stored(tree), *words(tree)} if isinstance(place, ModuleType) else set(stored(tree, "self"))


def stored(tree: ast.AST, owner: str = "") -> Iterator[str]:
    """Attributes that are set: on what is called `owner`, or on anything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            held = node.value.id if isinstance(node.value, ast.Name) else None
            if owner in ("", held):
                yield node.attr


def words(tree: ast.AST) -> Iterator[str]:
    """Parts of its strings, and names of its keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from node.value.split(".")
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
