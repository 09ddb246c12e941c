"""`eplb-plugin precompile`: what it compiles, and what it is not told to."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from cli_files import Answer, refused
from eplb_plugin import jit
from eplb_plugin.runtime import precompile


def test_it_compiles_for_every_pair_and_says_how_long(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the policies and rules given; without any, the policies that may plan in servers and all rules."""
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(precompile, "compile_for", lambda *pair: (made.append(pair), 1.25)[1])
    words = ("precompile", "--policy", "deepseek", "--dispatch", "hash", "--dispatch", "cover")
    code, out, err = call(*words, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"seconds": {"deepseek, hash": 1.25, "deepseek, cover": 1.25}}
    assert call(*words) == (0, "deepseek, hash: 1.2 s\ndeepseek, cover: 1.2 s\n", "")
    made.clear()
    assert call("precompile")[0] == 0
    assert len(set(made)) == len(made) == 8
    assert {policy for policy, _ in made} == {"affinity", "balanced"}


def test_it_refuses(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names, and a machine on which nothing can be kept."""
    refused(call("precompile", "--policy", "best"), "policy: found 'best'")
    refused(call("precompile", "--dispatch", "random"), "dispatch: found 'random'")
    monkeypatch.setattr(precompile, "compile_for", lambda *pair: pytest.fail("it compiles"))
    monkeypatch.setattr(jit, "is_cached", lambda: False)
    refused(call("precompile"), "cache: found no writable folder, expected one; fix: set NUMBA_CACHE_DIR")
