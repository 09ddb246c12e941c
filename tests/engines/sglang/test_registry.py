"""Our table through SGLang's own registry of hooks, on modules made for the purpose."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from eplb_plugin.engines import hooks
from eplb_plugin.engines.hooks import Hook
from eplb_plugin.engines.sglang import registry
from eplb_plugin.errors import PluginError

NAME, COPY = "eplb_plugin_registry_target", "eplb_plugin_registry_copy"
SOURCE = """
def plain(a, b=2):
    return "plain", a, b

class Target:
    @classmethod
    def made(cls, a):
        return cls, a
"""


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module, another that has imported from it, and a registry that nobody has used."""
    module: Any = types.ModuleType(NAME)
    exec(SOURCE, module.__dict__)
    copy: Any = types.ModuleType(COPY)
    copy.taken = module.plain
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.setitem(sys.modules, COPY, copy)
    before = dict(HookRegistry._hooks), set(HookRegistry._patched)
    HookRegistry.reset()
    yield module
    HookRegistry.reset()
    HookRegistry._hooks.update(before[0])
    HookRegistry._patched.update(before[1])


def mark(original: Any, *args: Any, **kwargs: Any) -> Any:
    return "ours", original(*args, **kwargs)


PLAIN = Hook(f"{NAME}:plain", "around", "why", "(a, b=2)", mark)
MADE = Hook(f"{NAME}:Target.made", "around", "why", "(cls, a)", mark)


def test_applied_through_sglangs_registry(target: Any) -> None:
    """In force for callers, also for those who imported the function before, and known to SGLang."""
    registry.apply([PLAIN, MADE])
    assert target.plain(1) == sys.modules[COPY].taken(1) == ("ours", ("plain", 1, 2))
    assert target.Target.made(1) == ("ours", (target.Target, 1))
    assert HookRegistry._patched == {f"{NAME}.plain", f"{NAME}.Target.made"}
    registry.apply([PLAIN, MADE])  # again: nothing is hooked twice
    assert target.plain(1) == ("ours", ("plain", 1, 2))
    assert not any(status.problem for status in hooks.check([PLAIN, MADE]))


def test_a_table_that_does_not_fit_is_not_registered(target: Any) -> None:
    """If one signature differs, SGLang hears of none of the hooks."""
    with pytest.raises(PluginError, match=r"Target\.made: found \(cls, a\), expected \(cls\)"):
        registry.register_hooks([PLAIN, Hook(MADE.target, "around", "why", "(cls)", mark)])
    assert not HookRegistry._hooks


def test_beside_another_plugin(target: Any) -> None:
    """A plugin that hooks the same function in the same round leaves ours in force, in either order."""
    HookRegistry.register(f"{NAME}.plain", lambda original, a, b=2: ("before", original(a, b)), HookType.AROUND)
    registry.register_hooks([PLAIN])
    HookRegistry.register(f"{NAME}.plain", lambda result, *_: ("after", result), HookType.AFTER)
    assert [status.applied for status in hooks.check([PLAIN])] == [False]
    HookRegistry.apply_hooks()
    hooks.verify([PLAIN])
    assert target.plain(1) == ("after", ("ours", ("before", ("plain", 1, 2))))


def test_a_target_that_was_hooked_before_is_noticed(target: Any) -> None:
    """SGLang patches a function once and ignores, without a word, what is registered for it later."""
    HookRegistry.register(f"{NAME}.plain", lambda original, a, b=2: original(a, b), HookType.AROUND)
    HookRegistry.apply_hooks()
    with pytest.raises(
        PluginError, match="plain: found not hooked, expected the eplb-plugin hook in force; fix: disab"
    ):
        registry.apply([PLAIN, MADE])


def test_a_replaced_class_is_noticed(target: Any) -> None:
    """A plugin that puts another class in the place of ours takes our hook with it."""
    registry.apply([MADE])
    target.Target = type("Target", (), {"made": classmethod(lambda cls, a: a)})
    with pytest.raises(PluginError, match=r"Target\.made: found not hooked"):
        hooks.verify([MADE])
