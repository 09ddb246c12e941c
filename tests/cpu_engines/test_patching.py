"""A replacement is made only where the engine's function is the known one."""

from types import SimpleNamespace

import pytest
from eplb_cpu_engines.patching import UnknownEngine, replace


def owner() -> SimpleNamespace:
    return SimpleNamespace(__name__="engine", step=lambda state, *, is_dummy=False: state)


def test_the_known_function_is_replaced_and_can_be_called():
    engine = owner()
    replace(engine, "step", "state, *, is_dummy", lambda original: lambda state: original(state) + 1)
    assert engine.step(1) == 2


def test_a_method_of_a_class_is_replaced_by_what_does_not_take_the_class():
    class Engine:
        @classmethod
        def name(cls, suffix):
            return cls.__name__ + suffix

    replace(Engine, "name", "suffix", lambda original: lambda suffix: original(suffix) + "!")
    assert Engine.name("-1") == Engine().name("-1") == "Engine-1!"


def test_another_signature_is_refused_and_left_alone():
    engine = owner()
    original = engine.step
    with pytest.raises(
        UnknownEngine, match=r"found engine\.step\(state, \*, is_dummy\), expected engine\.step\(state\): install"
    ):
        replace(engine, "step", "state", lambda original: original)
    assert engine.step is original
