"""What differs between releases of vLLM is asked of objects: the same answer, whichever shape they have."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from eplb_plugin.engines.vllm.compat import MAPS, MEGA_MOE, is_draft, is_mega_moe, load_buffer, maps_by_name


@pytest.mark.parametrize("kind", MEGA_MOE)
def test_a_mega_moe_layer_of_either_release_is_one(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a class derived from it; where the module is there and its class is not, nothing is."""
    for other in MEGA_MOE:
        monkeypatch.setitem(sys.modules, other.module, ModuleType(other.module))
    assert not is_mega_moe(object())
    layer = type(kind.name, (), {})
    monkeypatch.setattr(sys.modules[kind.module], kind.name, layer, raising=False)
    assert is_mega_moe(layer())
    assert is_mega_moe(type("Derived", (layer,), {})())
    assert not is_mega_moe(object())


def test_without_the_modules_nothing_is_mega_moe(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in MEGA_MOE:
        monkeypatch.delitem(sys.modules, kind.module, raising=False)
    assert not is_mega_moe(object())
    assert not any(kind.module in sys.modules for kind in MEGA_MOE)


def test_the_buffer_that_counts_are_written_to() -> None:
    """The wider one, of which a pass has a part; before 0.30 the counts of the pass themselves."""
    wide, narrow = torch.zeros(2, 8), torch.zeros(2, 6)
    assert load_buffer(SimpleNamespace(expert_load_pass=wide[:, :6], expert_load_pass_buffer=wide)) is wide
    assert load_buffer(SimpleNamespace(expert_load_pass=narrow)) is narrow


def test_a_draft_is_the_model_of_the_speculative_configuration() -> None:
    """Told by identity: a target that equals its draft in every setting is none."""
    target, draft = SimpleNamespace(model="a"), SimpleNamespace(model="a")
    assert not is_draft(target, SimpleNamespace(speculative_config=None))
    speculating = SimpleNamespace(speculative_config=SimpleNamespace(draft_model_config=draft))
    assert is_draft(draft, speculating)
    assert not is_draft(target, speculating)


def test_modules_that_hold_the_function_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("holder")
    assert not maps_by_name("holder")
    monkeypatch.setitem(sys.modules, "holder", module)
    assert not maps_by_name("holder")
    setattr(module, MAPS, print)
    assert maps_by_name("holder")
