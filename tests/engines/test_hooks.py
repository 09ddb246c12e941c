"""The hook mechanism, on a module made for the purpose: all of a table or nothing, and what it did can be undone."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from eplb_plugin.engines.hooks import Hook, apply, check, remove, signature_of, verify
from eplb_plugin.errors import PluginError

NAME = "eplb_plugin_hook_target"
SOURCE = '''
def plain(a: int, b: str = "x", *rest, c=None, **more) -> str:
    """Says what it got."""
    return f"plain {a} {b} {c}"

class Base:
    def inherited(self, a):
        return "base", a

class Target(Base):
    def method(self, a, b=2):
        return self, a, b

    @staticmethod
    def static(a):
        return a

    @classmethod
    def made(cls, a):
        return cls, a

class Derived(Target):
    pass

value = 3
'''


@pytest.fixture
def target() -> Iterator[types.ModuleType]:
    module: Any = types.ModuleType(NAME)
    exec(SOURCE, module.__dict__)
    sys.modules[NAME] = module
    yield module
    del sys.modules[NAME]


def mark(original: Any, *args: Any, **kwargs: Any) -> Any:
    return "hooked", original(*args, **kwargs)


PLAIN = Hook(f"{NAME}:plain", "around", "why", "(a, b='x', *rest, c=None, **more)", mark)
METHOD = Hook(f"{NAME}:Target.method", "around", "why", "(self, a, b=2)", mark)
STATIC = Hook(f"{NAME}:Target.static", "around", "why", "(a)", mark)
MADE = Hook(f"{NAME}:Target.made", "around", "why", "(cls, a)", mark)
ALL = (PLAIN, METHOD, STATIC, MADE)
BAD = Hook(f"{NAME}:Target.method", "around", "why", "(self, a)", mark)


def state(module: types.ModuleType) -> dict[str, Any]:
    """Everything that a hook could replace, by identity."""
    return {**vars(module), **{f"Target.{name}": value for name, value in vars(module.Target).items()}}


def test_applied_hooks_see_every_call(target: Any) -> None:
    """A wrapper gets the original and the caller's arguments, of functions and of all kinds of methods."""
    apply(ALL)
    one = target.Target()
    assert target.plain(1, c=4) == ("hooked", "plain 1 x 4")
    assert one.method(1) == ("hooked", (one, 1, 2))
    assert target.Target.static(5) == one.static(5) == ("hooked", 5)
    assert target.Target.made(6) == ("hooked", (target.Target, 6))
    assert target.Derived.made(7) == ("hooked", (target.Derived, 7))


def test_replacing_hook_does_the_work(target: Any) -> None:
    """A `replace` hook need not call the original."""
    apply([Hook(PLAIN.target, "replace", "why", PLAIN.signature, lambda original, a, **_: a * 2)])
    assert target.plain(21) == 42


def test_kinds_are_kept(target: Any) -> None:
    """A static method stays static and a class method a class method, hooked and after removal."""
    for act in (apply, remove):
        act(ALL)
        kinds = {name: type(inspect.getattr_static(target.Target, name)) for name in ("method", "static", "made")}
        assert kinds == {"method": types.FunctionType, "static": staticmethod, "made": classmethod}


def test_hooked_function_looks_like_the_original(target: Any) -> None:
    """Name, docstring and signature are the original's: engines inspect their own functions."""
    signature = inspect.signature(target.plain)
    apply([PLAIN])
    assert (target.plain.__name__, target.plain.__doc__) == ("plain", "Says what it got.")
    assert inspect.signature(target.plain) == signature


def test_apply_twice_hooks_once(target: Any) -> None:
    """Plugins are loaded several times in a process: the second time changes nothing."""
    apply(ALL)
    before = state(target)
    apply(ALL)
    assert state(target) == before
    assert target.plain(1) == ("hooked", "plain 1 x None")


def test_remove_restores_the_originals(target: Any) -> None:
    """After removal the functions are the originals themselves; removing again does nothing."""
    functions = {name: getattr(value, "__func__", value) for name, value in state(target).items()}
    apply(ALL)
    for _ in range(2):
        remove(ALL)
        assert {name: getattr(value, "__func__", value) for name, value in state(target).items()} == functions


@pytest.mark.parametrize("order", [(PLAIN, BAD, MADE), (BAD, PLAIN, MADE), (PLAIN, MADE, BAD)])
def test_one_differing_signature_leaves_all_untouched(target: Any, order: tuple[Hook, ...]) -> None:
    """Nothing is hooked if one signature differs; the message says found, expected and fix."""
    before = state(target)
    with pytest.raises(PluginError) as caught:
        apply(order)
    assert state(target) == before
    assert str(caught.value).startswith(f"{NAME}:Target.method: found (self, a, b=2), expected (self, a); fix: use the")


def test_every_differing_signature_is_named(target: Any) -> None:
    """All problems of a table are reported at once, in one line."""
    other = Hook(PLAIN.target, "around", "why", "(a)", mark)
    with pytest.raises(PluginError) as caught:
        apply([BAD, other, MADE])
    assert BAD.target in str(caught.value)
    assert other.target in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("eplb_plugin_no_such_module:plain", "No module named"),
        (f"{NAME}:missing", "missing"),
        (f"{NAME}:Target.missing", "missing"),
        (f"{NAME}:Missing.method", "Missing"),
        (f"{NAME}:value", "found"),
    ],
)
def test_missing_target_refused(target: Any, name: str, reason: str) -> None:
    """A missing module, attribute or class, or one that is no function, is refused in one line."""
    before = state(target)
    with pytest.raises(PluginError) as caught:
        apply([PLAIN, Hook(name, "around", "why", "()", mark)])
    assert state(target) == before
    message = str(caught.value)
    assert message.startswith(f"{name}: found ")
    assert reason in message
    assert "; fix: " in message
    assert len(message.splitlines()) == 1


def test_module_that_fails_to_import_refused(target: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine module that breaks while it is imported is refused like a missing one."""
    (tmp_path / "eplb_plugin_broken_target.py").write_text("raise OSError('no such library')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="no such library"):
        apply([Hook("eplb_plugin_broken_target:f", "around", "why", "()", mark)])


def test_verify_notices_a_replaced_target(target: Any) -> None:
    """A target that another plugin replaced after us is named, with what to do about it."""
    apply(ALL)
    verify(ALL)
    target.Target.method = lambda self, a, b=2: None
    with pytest.raises(PluginError, match=r"Target\.method: found not hooked, .*fix: disable the other plugin"):
        verify(ALL)


def test_verify_accepts_a_wrapper_around_ours(target: Any) -> None:
    """A plugin that wraps ours with functools.wraps leaves it in force."""
    import functools

    apply([PLAIN])
    ours = target.plain

    @functools.wraps(ours)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return "theirs", ours(*args, **kwargs)

    target.plain = theirs
    verify([PLAIN])
    assert target.plain(1) == ("theirs", ("hooked", "plain 1 x None"))


def test_check_touches_nothing(target: Any) -> None:
    """check reports the same before and after, and what is applied, without changing anything."""
    before = state(target)
    statuses = check([*ALL, BAD])
    assert state(target) == before
    assert [status.applied for status in statuses] == [False] * 5
    assert [bool(status.problem) for status in statuses] == [False] * 4 + [True]
    apply(ALL)
    assert [status.applied for status in check(ALL)] == [True] * 4
    assert not any(status.problem for status in check(ALL))  # the signature compared is the original's


def test_inherited_method_is_hooked_on_the_class_named(target: Any) -> None:
    """A hook on an inherited method affects the class it names and not the base class."""
    hook = Hook(f"{NAME}:Target.inherited", "around", "why", "(self, a)", mark)
    apply([hook])
    assert target.Target().inherited(1) == ("hooked", ("base", 1))
    assert target.Base().inherited(1) == ("base", 1)
    remove([hook])
    assert target.Target().inherited(1) == ("base", 1)


def test_signature_ignores_annotations_only() -> None:
    """Names, kinds and defaults count; annotations do not."""

    def one(a: int, /, b: str = "x", *, c: float = 1.0) -> None: ...

    def other(a, /, b="x", *, c=1.0): ...  # type: ignore[no-untyped-def]

    assert signature_of(one) == signature_of(other) == "(a, /, b='x', *, c=1.0)"
