"""Replacing a function of an engine, after a look whether it is still the one the replacement was written for."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any


class UnknownEngine(RuntimeError):
    """The engine is not the one that was patched; one line with found, expected, fix."""


def replace(owner: Any, name: str, parameters: str, make: Callable[[Callable], Callable]) -> None:
    """Set `owner.name` to `make(original)`, if the original takes `parameters` ("self, x, *, y").

    A class's own method is replaced, like its original, by what does not take the class.
    """
    original = getattr(owner, name)
    require(f"{owner.__name__}.{name}({parameters})", f"{owner.__name__}.{name}({_parameters(original)})")
    replacement = functools.wraps(original)(make(original))
    setattr(owner, name, staticmethod(replacement) if inspect.ismethod(original) else replacement)


def require(expected: str, found: str) -> None:
    """Refuse an engine where the fact `found` is not the `expected` one."""
    if found != expected:
        raise UnknownEngine(
            f"found {found}, expected {expected}: install the engine version that eplb-cpu-engines' README names"
        )


def say_in_force(logger: logging.Logger, parts: list[str]) -> None:
    """Name in the log what was replaced in this process."""
    # A warning, because the front ends register plugins before they have set up their logs, and show only those.
    logger.warning("Test bed for CPUs, not for production: eplb_cpu_engines is in force (%s)", ", ".join(parts))


def _parameters(function: Callable) -> str:
    """Names in order, keyword-only ones after a star; annotations and defaults left out."""
    prefix = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    words = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(prefix.get(parameter.kind, "") + parameter.name)
    return ", ".join(words)
