"""The one mechanism by which a stock engine is hooked: a table of targets, checked first, applied once, verified after.

A hook names its target, says why it exists, and states the signature it was written against. Nothing is touched unless
every signature of the table matches, so that an engine whose internals moved is refused instead of half hooked.

Only the touching differs by engine: vLLM offers nothing for it, so attributes are set here; SGLang has a registry of
its own, which its adapter passes as `install`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

from ..errors import PluginError, mismatch

OTHER_ENGINE = "use the engine version that the README names, or a newer eplb-plugin"

Wrapper = Callable[..., Any]  # called as wrapper(original, *args, **kwargs)


@dataclass(frozen=True)
class Hook:
    """target: `module:attribute` or `module:Class.attribute`.
    kind: around = calls the original; replace = does its work.
    why: one sentence for the reader of `eplb-plugin doctor`.
    signature: parameter names and defaults, e.g. `(self, is_dummy=False)`; annotations do not count.
    wrapper: called as wrapper(original, *args, **kwargs).
    older: signatures of older releases that the wrapper takes too: it names what it uses, and passes on the rest.
    """

    target: str
    kind: Literal["around", "replace"]
    why: str
    signature: str
    wrapper: Wrapper
    older: tuple[str, ...] = ()

    @property
    def signatures(self) -> tuple[str, ...]:
        """All that are accepted, the newest first."""
        return self.signature, *self.older


@dataclass(frozen=True)
class HookStatus:
    """What `check` found for one hook; problem is empty if all is well."""

    hook: Hook
    applied: bool
    problem: str


def signature_of(function: Callable[..., Any]) -> str:
    """Parameters with their defaults, without annotations: what a caller depends on."""
    signature = inspect.signature(function)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def check(hooks: Iterable[Hook]) -> list[HookStatus]:
    """Resolve every target and compare signatures, touching nothing."""
    statuses = []
    for hook in hooks:
        try:
            _, _, found = _resolve(hook.target)
        except PluginError as error:
            statuses.append(HookStatus(hook, False, str(error)))
            continue
        layers = _layers(found)
        original = layers[-1]
        signature = signature_of(original) if callable(original) else f"{type(original).__name__}, no function"
        problem = ""
        if signature not in hook.signatures:
            problem = str(mismatch(hook.target, found=signature, expected=hook.signature, fix=OTHER_ENGINE))
        statuses.append(HookStatus(hook, any(_calls(layer, hook.wrapper) for layer in layers), problem))
    return statuses


def fitting(hooks: Iterable[Hook]) -> list[Hook]:
    """Those hooks that are not in force yet. Raises PluginError, which names all of them, if any does not fit."""
    statuses = check(hooks)
    problems = [status.problem for status in statuses if status.problem]
    if problems:
        raise PluginError("; ".join(problems))
    return [status.hook for status in statuses if not status.applied]


def apply(hooks: Iterable[Hook], install: Callable[[list[Hook]], None] | None = None) -> None:
    """Apply every hook that is not applied yet. Raises PluginError, before anything is touched, if one does not fit."""
    hooks = tuple(hooks)
    (install or _install)(fitting(hooks))
    verify(hooks)


def verify(hooks: Iterable[Hook]) -> None:
    """Raises PluginError if a hook is not in force, e.g. because another plugin has replaced its target since."""
    for status in check(hooks):
        if not status.applied:
            raise mismatch(
                status.hook.target,
                found="not hooked",
                expected="the eplb-plugin hook in force",
                fix="disable the other plugin that replaces it (VLLM_PLUGINS or SGLANG_PLUGINS names those that load)",
            )


def remove(hooks: Iterable[Hook]) -> None:
    """Put back what our wrappers wrap, where they are outermost (for tests)."""
    for hook in hooks:
        owner, name, found = _resolve(hook.target)
        function, *wrapped = _layers(found)
        if wrapped and _calls(function, hook.wrapper):
            setattr(owner, name, _like(found, wrapped[0]))


def _install(hooks: list[Hook]) -> None:
    for hook in hooks:
        owner, name, found = _resolve(hook.target)
        setattr(owner, name, _like(found, _around(getattr(found, "__func__", found), hook.wrapper)))


def _around(original: Callable[..., Any], wrapper: Wrapper) -> Callable[..., Any]:
    @wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    return hooked


def _layers(found: Any) -> list[Any]:
    """A function and what it wraps, from the outside to the innermost, as functools.wraps leaves the trace."""
    layers = [getattr(found, "__func__", found)]
    while (inner := getattr(layers[-1], "__wrapped__", None)) is not None:
        layers.append(inner)
    return layers


def _calls(function: Any, wrapper: Wrapper) -> bool:
    """Whether `function` is a closure over `wrapper`: a mark on it would only say that it was meant to be."""
    if not inspect.isfunction(function):
        return False
    return any(held is wrapper for held in inspect.getclosurevars(function).nonlocals.values())


def _like(found: Any, function: Callable[..., Any]) -> Any:
    """`function` as the same kind of attribute as `found`: plain, static or class method."""
    return type(found)(function) if isinstance(found, (staticmethod, classmethod)) else function


def _resolve(target: str) -> tuple[Any, str, Any]:
    """Owner, attribute name, and the attribute as it stands in the owner (descriptors unbound)."""
    module_name, _, path = target.partition(":")
    *owners, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module_name)
        for part in owners:
            owner = getattr(owner, part)
        return owner, name, inspect.getattr_static(owner, name)
    except Exception as error:  # whatever an engine's module raises while it is imported
        raise mismatch(target, found=f"nothing ({error})", expected="a hookable function", fix=OTHER_ENGINE) from None
