"""A check that cannot fail checks nothing: here every kind of promise is broken once, in a copy of a few lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from contracts import check
from contracts.sources import NotThere, Sources
from contracts.uses import PythonFile
from eplb_plugin.engines.hooks import Hook

ENGINE = """
from enum import Enum
from typing import overload
from .base import Base

class Kind(Enum):
    ONE = "one"

class State(Base):
    held: int

    @overload
    def step(self, real): ...

    def __init__(self, model):
        self.model = model

    def step(self, real, *, kind=Kind.ONE):
        return real, kind

    @staticmethod
    def made(name):
        return name

def current():
    return State(None)
"""
PLUGIN = """
from engine.state import State, current

def use(state):
    State.made("a")
    current().step(1, kind=2)
    return state.held, getattr(state, "model"), state.inherited
"""
TABLE = {"engine.state:State": "held inherited model step"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Sources]:
    """The engine's state module and its base, as sources."""

    def into(state: str, base: str = "class Base:\n    inherited = 1\n") -> Sources:
        folder = tmp_path / "engine"
        folder.mkdir(exist_ok=True)
        for name, text in (("__init__", "from .state import *\n"), ("state", state), ("base", base)):
            (folder / f"{name}.py").write_text(text)
        return Sources(tmp_path)

    return into


def problems(sources: Sources, folder: Path) -> list[str]:
    (folder / "plugin.py").write_text(PLUGIN)
    files = [PythonFile(folder / "plugin.py")]
    hook = Hook("engine:State.step", "around", "", "(self, real, *, kind=<Kind.ONE: 'one'>)", print)
    return [
        *check.hooks(sources, [hook]),
        *check.imports(sources, files, ("engine",)),
        *check.reads(sources, files, TABLE),
    ]


def test_what_fits_is_no_problem(write: Callable[..., Sources], tmp_path: Path) -> None:
    """Through a star import, a base class of another file, an overload, a static method, a default that is computed."""
    assert problems(write(ENGINE), tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("real, *, kind", "real, extra=None, *, kind", "hook engine:State.step: found (self, real, extra=None, *"),
        ("kind=Kind.ONE", "kind=None", "found (self, real, *, kind=None), expected (self, real, *, kind=Kind.ONE)"),
        ("kind=Kind.ONE", "sort=Kind.ONE", "plugin.py:6: found a call with kind by name"),
        ("step(self, real, *", "step(self, real, more, *", "plugin.py:6: found a call with no more"),
        ("step(self, real, *", "step(self, *", "found a call with 1 arguments by place, where 0 are taken"),
        ("def step(self, real, *", "def stride(self, real, *", "found no step in State of engine.state"),
        ("made(name)", "made()", "plugin.py:5: found a call with 1 arguments by place"),
        ("def made", "def make", "plugin.py:5: found no made in State of engine.state"),
        ("def current", "def present", "plugin.py: found no current in engine.state"),
        ("held: int", "pass", "plugin.py:7: found no held in engine.state:State"),
        ("self.model = model", "other.model = model", "found no model in engine.state:State"),
        ("State(Base)", "State", "found no inherited in engine.state:State"),
        ("class State", "class Status", "found no State in engine.state"),
    ],
)
def test_every_broken_promise_is_told(
    old: str, new: str, found: str, write: Callable[..., Sources], tmp_path: Path
) -> None:
    """In one line that names the plugin's file, what was found, what was expected and what to do."""
    assert ENGINE.count(old) == 1
    told = problems(write(ENGINE.replace(old, new)), tmp_path)
    assert any(found in one for one in told), told
    assert all("; fix: " in one and "\n" not in one for one in told)


def test_a_row_that_nobody_needs_any_more_is_told(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text("def use(state):\n    return state.held\n")
    (told,) = check.unused([PythonFile(tmp_path / "plugin.py")], {"engine.state:State": "held model"})
    assert told.startswith("engine.state:State: model: found no use of it")


BUFFER = """
class Buffer:
    def send(self, x, ids, *, deep=1, **options):
        return x, (ids, 1) if deep else 0, 3
"""


@pytest.mark.parametrize(
    ("theirs", "fits"),
    [
        ("self, x, ids, more=None", True),
        ("self, ids, x", False),
        ("self, x, more, ids", False),
        ("self, x, idx", False),
        ("self, x, ids=None", False),
    ],
)
def test_a_stand_in_takes_calls_by_place_and_by_name(theirs: str, fits: bool, tmp_path: Path) -> None:
    for name, text in (("own", BUFFER), ("theirs", f"class Buffer:\n    def send({theirs}):\n        pass\n")):
        (tmp_path / f"{name}.py").write_text(text)
    sources = Sources(tmp_path)
    assert (check.stands_for(sources, "own:Buffer.send", sources, "theirs:Buffer.send") == []) is fits


@pytest.mark.parametrize(
    ("engine", "fits"),
    [("b.send(1, ids=2)", True), ("b.send(1, 2, more=3, **rest)", True), ("b.send()", False), ("b.sent(1, 2)", False)],
)
def test_calls_of_an_engine_are_held_against_a_method(engine: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BUFFER)
    (tmp_path / "engine.py").write_text(engine)
    assert (check.calls(Sources(tmp_path), "own:Buffer.send", [PythonFile(tmp_path / "engine.py")]) == []) is fits


def test_results_are_counted(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BUFFER)
    sources = Sources(tmp_path)
    assert check.returns(sources, "own:Buffer.send", 3) == []
    assert len(check.returns(sources, "own:Buffer.send", 2)) == 1


def test_what_is_no_function_has_no_signature(write: Callable[..., Sources]) -> None:
    with pytest.raises(NotThere, match="State is a ClassDef, no function"):
        write(ENGINE).signature("engine.state:State")
    with pytest.raises(NotThere, match="no module elsewhere"):
        write(ENGINE).find("elsewhere:thing")


def test_the_first_folder_that_has_a_module_wins(write: Callable[..., Sources], tmp_path: Path) -> None:
    """So that one file can be changed without a copy of the others."""
    sources = write(ENGINE)
    above = tmp_path / "above" / "engine"
    above.mkdir(parents=True)
    (above / "state.py").write_text(ENGINE.replace("held: int", "kept: int"))
    changed = Sources(above.parent, *sources.roots)
    assert "kept" in changed.attributes("engine.state:State")
    assert "inherited" in changed.attributes("engine.state:State")
