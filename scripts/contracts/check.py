"""What does not fit: each function returns one line per problem, which names the plugin's file and their module."""

from __future__ import annotations

import argparse
import ast
import inspect
import logging
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel

from eplb_plugin.engines.hooks import Hook
from eplb_plugin.errors import mismatch

from .sources import NotThere, Sources
from .table import Reliance
from .uses import PythonFile, Shape, Use, plugin_files

FIX = "make the plugin fit this release, or name another one in the README"

# what the plugin holds besides its own objects and the engines'
_COMMON = (
    argparse.ArgumentParser, BaseModel, Path, dict, int, list, logging.Logger, np.ndarray, os.stat_result,
    random.Random, set, str, torch.nn.Module, torch.Tensor, tuple, type,
)  # fmt: skip
_ALSO = {"_replace", "eplb_plugin_config", "to_dict"}  # of every NamedTuple; the plugin's flag; of transformers


def hooks(sources: Sources, rows: Iterable[Hook]) -> list[str]:
    """Every target is there with a signature that its hook states."""
    problems = []
    for row in rows:
        try:
            found = str(sources.signature(row.target))
        except NotThere as error:
            found = str(error)
        # a member of an enumeration, as it is written
        expected, *older = (re.sub(r"<(\w+\.\w+): [^>]*>", r"\1", one) for one in row.signatures)
        if found not in (expected, *older):
            problems.append(str(mismatch(f"hook {row.target}", found=found, expected=expected, fix=FIX)))
    return problems


def alternatives(sources: Sources, rows: Sequence[Hook]) -> list[str]:
    """Of hooks for one thing that lies elsewhere in every release: those that are there fit, and there is one."""
    present = [row for row in rows if there(sources, row.target)]
    if rows and not present:
        found, expected = "none of them", "one of its places in the releases that are known"
        return [str(mismatch(" or ".join(row.target for row in rows), found=found, expected=expected, fix=FIX))]
    return hooks(sources, present)


def there(sources: Sources, target: str) -> bool:
    try:
        sources.find(target)
    except NotThere:
        return False
    return True


def imports(sources: Sources, files: Iterable[PythonFile], packages: tuple[str, ...]) -> list[str]:
    """Every imported name is there, and takes the arguments that the plugin passes."""
    return [one for file in files for use in file.imports(packages) for one in _misfits(sources, use.name, use)]


def unlisted(reliance: Reliance) -> list[str]:
    """Every attribute of an object that is not the plugin's own is in the table: else no wheel is asked for it.

    Told by its name, where no owners are named: one that the plugin uses for its own too is not missed here.
    """
    listed = {name for table in (reliance.table, reliance.some) for names in table.values() for name in names.split()}
    problems = []
    for file in reliance.files():
        others = set() if reliance.owners else _known() | file.of_modules()
        for use in file.attributes():
            wanted = use.owner in reliance.owners if reliance.owners else use.name not in others
            if wanted and use.name not in listed:
                fix = "add it to scripts/contracts/table.py, under its class"
                problems.append(str(mismatch(use.where, found=f"{use.name}, in no table", expected="a row", fix=fix)))
    return problems


def unused(files: Sequence[PythonFile], table: dict[str, str]) -> list[str]:
    """Every attribute of the table is one that the plugin still reads."""
    needed = {use.name for file in files for use in file.attributes()} | {
        word for file in files for word in file.words()
    }
    return [
        str(mismatch(f"{target}: {name}", found="no use of it", expected="one", fix="remove it from the table"))
        for target, names in table.items()
        for name in names.split()
        if name not in needed
    ]


@cache
def _known() -> set[str]:
    """Names of the plugin's own and of what every program has."""
    own = {name for file in plugin_files("**/*.py") for name in file.defined()}
    return own | _ALSO | {name for one in _COMMON for name in dir(one)}


def stands_for(own: Sources, target: str, theirs: Sources, other: str) -> list[str]:
    """Whoever calls `other` may call `target`, the plugin's: by place and by name, with the same defaults."""
    mine, found = (list(one.signature(name).parameters.values()) for one, name in ((own, target), (theirs, other)))
    mine = [one for one in mine if one.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD]
    needed = [one for one in mine if one.default is inspect.Parameter.empty]
    names = {one.name for one in mine}
    if [one for one in found if one.name in names] == mine and found[: len(needed)] == needed:
        return []
    theirs_text, own_text = (" ".join(map(str, one)) for one in (found, mine))
    return [str(mismatch(target, found=f"{other} with {theirs_text}", expected=own_text, fix=FIX))]


def calls(sources: Sources, target: str, files: Iterable[PythonFile]) -> list[str]:
    """Every call of a method of this name in these files, an engine's for example, fits `target`. There are some."""
    name = target.rpartition(".")[2]
    uses = [use for file in files for use in file.attributes() if use.name == name and use.call]
    problems = [one for use in uses for one in _misfits(sources, target, use)]
    return problems if uses else [str(mismatch(target, found="no call", expected="one", fix="name the file of it"))]


def returns(sources: Sources, target: str, size: int) -> list[str]:
    """A function returns tuples of this size only, as the plugin takes them apart."""
    nodes = [node for node in ast.walk(sources.find(target).node) if isinstance(node, ast.Return)]
    sizes = {len(node.value.elts) if isinstance(node.value, ast.Tuple) else 0 for node in nodes}
    return [] if sizes == {size} else [str(mismatch(target, found=f"results of {sizes}", expected=size, fix=FIX))]


def reads(sources: Sources, files: Sequence[PythonFile], table: dict[str, str]) -> list[str]:
    """Every attribute of the table is there, and takes the arguments that the plugin passes."""
    problems = []
    uses = [use for file in files for use in file.attributes()]
    for target, names in table.items():
        for name in names.split():
            users = [use for use in uses if use.name == name]
            where = ", ".join(dict.fromkeys(use.where for use in users)) or files[0].title
            try:
                there = name in sources.attributes(target)
                missing = f"no {name} in {target}"
            except NotThere as error:
                there, missing = False, str(error)
            if not there:
                problems.append(str(mismatch(where, found=missing, expected=f"{target} with {name}", fix=FIX)))
                continue
            for use in users:
                problems += _misfits(sources, f"{target}.{name}" if ":" in target else f"{target}:{name}", use)
    return problems


def _misfits(sources: Sources, target: str, use: Use) -> Iterator[str]:
    """Whether it is there; where it is a function that is called, whether it takes the call."""
    try:
        sources.find(target)
    except NotThere as error:
        if use.name == target:  # else it is set on instances
            yield str(mismatch(use.where, found=str(error), expected=target, fix=FIX))
        return
    if use.call is None:
        return
    try:
        signature = sources.signature(target)
    except NotThere:  # a class, or a function that is held in a variable
        return
    bound = "." in target.partition(":")[2] and not sources.is_static(target)
    if reason := refusal(signature, use.call, int(bound)):
        expected = f"{target.rpartition(':')[2]} to take it"
        yield str(mismatch(use.where, found=f"a call with {reason}", expected=expected, fix=FIX))


def refusal(signature: inspect.Signature, call: Shape, bound: int) -> str:
    """Why a call cannot be taken; empty if it can. bound: 1 where the first parameter is `self` or `cls`."""
    parameters = list(signature.parameters.values())[bound:]
    kinds = inspect.Parameter
    places = [one for one in parameters if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    if call.positional > len(places) and not any(one.kind == kinds.VAR_POSITIONAL for one in parameters):
        return f"{call.positional} arguments by place, where {len(places)} are taken: {signature}"
    filled = {one.name for one in places[: call.positional]}
    by_name = {one.name for one in parameters if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)} - filled
    unknown = call.keywords - by_name
    if unknown and not any(one.kind == kinds.VAR_KEYWORD for one in parameters):
        return f"{', '.join(sorted(unknown))} by name, of {signature}"
    variable = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    needed = {one.name for one in parameters if one.default is kinds.empty and one.kind not in variable}
    missing = needed - filled - call.keywords
    return "" if call.open or not missing else f"no {', '.join(sorted(missing))}, of {signature}"
