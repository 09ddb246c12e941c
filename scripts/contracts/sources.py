"""Python packages that are parsed and never imported: what a module defines, with which parameters and attributes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eplb_plugin.engines.attributes import stored, words

Function = ast.FunctionDef | ast.AsyncFunctionDef


class NotThere(Exception):
    """What was looked up is not defined; the text says what is missing."""


@dataclass(frozen=True)
class Definition:
    """node: a function, a class, a module, or the statement that binds the name."""

    module: str
    node: ast.AST


@dataclass(frozen=True)
class Text:
    """A default value that only its module could compute; as it is written there."""

    text: str

    def __repr__(self) -> str:
        return self.text


class Sources:
    """The packages below some folders, as Python would find them; the first folder that has a module wins."""

    def __init__(self, *roots: Path) -> None:
        self.roots = roots
        self._names = cache(self._names_of)  # by instance, so that a copied tree is not mistaken for another
        self.tree = cache(self._tree)

    def _tree(self, module: str) -> ast.Module | None:
        """Parsed; None if there is no such module."""
        path = self._path(module)
        return None if path is None else ast.parse(path.read_text(), str(path))

    def _path(self, module: str) -> Path | None:
        parts = module.split(".")
        for root in self.roots:
            for path in (root.joinpath(*parts) / "__init__.py", root.joinpath(*parts).with_suffix(".py")):
                if path.is_file():
                    return path
        return None

    def find(self, target: str) -> Definition:
        """target: `module`, `module:name` or `module:Class.name`, wherever the module has it from. Raises NotThere."""
        module, _, path = target.partition(":")
        tree = self.tree(module)
        if tree is None:
            raise NotThere(f"no module {module}")
        if not path:
            return Definition(module, tree)
        first, *rest = path.split(".")
        definition = self._global(module, first)
        for name in rest:
            definition = self._member(definition, name)
        return definition

    def signature(self, target: str) -> inspect.Signature:
        """Parameters with defaults, without annotations. Raises NotThere, also for what is no function."""
        node = self.find(target).node
        if not isinstance(node, Function):
            raise NotThere(f"{target} is a {type(node).__name__}, no function")
        return signature_of(node.args)

    def is_static(self, target: str) -> bool:
        node = self.find(target).node
        decorators = node.decorator_list if isinstance(node, Function) else []
        return any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in decorators)

    def attributes(self, target: str) -> set[str]:
        """Of a class and its bases: what its body binds and its methods set on `self`. Raises NotThere.

        Of a module: what it binds, sets on anything, or names in a string or a keyword, as registries do.
        """
        definition = self.find(target)
        if isinstance(definition.node, ast.Module):
            return {*_bound(definition.node.body), *stored(definition.node), *words(definition.node)}
        if not isinstance(definition.node, ast.ClassDef):
            raise NotThere(f"{target} is a {type(definition.node).__name__}, no class")
        classes = [node for _, node in self._lineage(definition)]
        return {name for node in classes for name in (*_bound(node.body), *stored(node, "self"))}

    def _lineage(self, definition: Definition) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class with its module, then its bases as far as their modules are here."""
        if not isinstance(definition.node, ast.ClassDef):
            return
        yield definition.module, definition.node
        for base in definition.node.bases:
            first, *rest = ast.unparse(base).partition("[")[0].split(".")
            with suppress(NotThere):
                found = self._global(definition.module, first)
                for name in rest:
                    found = self._member(found, name)
                yield from self._lineage(found)

    def _member(self, definition: Definition, name: str) -> Definition:
        if isinstance(definition.node, ast.Module):
            return self._global(definition.module, name)
        for module, node in self._lineage(definition):
            if (found := _bound(node.body).get(name)) is not None:
                return Definition(module, found)
        title = getattr(definition.node, "name", type(definition.node).__name__)
        raise NotThere(f"no {name} in {title} of {definition.module}")

    def _global(self, module: str, name: str) -> Definition:
        """A name of a module, followed to where it is defined; or a submodule, which `from module import` gives too."""
        node = self._names(module).get(name)
        if isinstance(node, ast.ImportFrom | ast.Import):
            source = _imported(module, node, name, self._is_package(module))
            if self.tree(source) is not None:
                return self.find(source)
            owner, _, original = source.rpartition(".")
            if isinstance(node, ast.ImportFrom) and self.tree(owner) is not None:
                return self._global(owner, original)
        if node is not None:
            return Definition(module, node)
        if self.tree(f"{module}.{name}") is not None:
            return self.find(f"{module}.{name}")
        star = self._names(module).get("*")
        if isinstance(star, ast.ImportFrom):
            return self._global(_imported(module, star, "*", self._is_package(module)).removesuffix(".*"), name)
        raise NotThere(f"no {name} in {module}")

    def _is_package(self, module: str) -> bool:
        path = self._path(module)
        return path is not None and path.name == "__init__.py"

    def _names_of(self, module: str) -> dict[str, ast.stmt]:
        tree = self.tree(module)
        if tree is None:
            raise NotThere(f"no module {module}")
        return _bound(tree.body)


def signature_of(arguments: ast.arguments) -> inspect.Signature:
    kinds = inspect.Parameter
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + [*arguments.defaults]
    made = [
        _parameter(one, kinds.POSITIONAL_ONLY if one in arguments.posonlyargs else kinds.POSITIONAL_OR_KEYWORD, default)
        for one, default in zip(plain, defaults, strict=True)
    ]
    if arguments.vararg:
        made.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        made.append(_parameter(one, kinds.KEYWORD_ONLY, default))
    if arguments.kwarg:
        made.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(made)


def _parameter(argument: ast.arg, kind: inspect._ParameterKind, default: ast.expr | None) -> inspect.Parameter:
    if default is None:
        return inspect.Parameter(argument.arg, kind)
    try:
        value = ast.literal_eval(default)
    except ValueError:
        value = Text(ast.unparse(default))
    return inspect.Parameter(argument.arg, kind, default=value)


def _bound(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that statements bind, also inside `if`, `try` and `with`; the first binding that is no import counts."""
    names: dict[str, ast.stmt] = {}
    for node in _flat(body):
        for name in _names_bound(node):
            if name not in names or isinstance(names[name], ast.Import | ast.ImportFrom):
                names[name] = node
    return names


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            yield from _flat(inner + [one for handler in getattr(node, "handlers", []) for one in handler.body])


def _names_bound(node: ast.stmt) -> list[str]:
    if isinstance(node, Function | ast.ClassDef):
        overloads = (one for one in node.decorator_list if isinstance(one, ast.Name) and one.id == "overload")
        return [] if any(overloads) else [node.name]
    if isinstance(node, ast.Import):
        return [(one.asname or one.name).partition(".")[0] for one in node.names]
    if isinstance(node, ast.ImportFrom):
        return [one.asname or one.name for one in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [one.id for target in targets if target for one in ast.walk(target) if isinstance(one, ast.Name)]


def _imported(module: str, node: ast.Import | ast.ImportFrom, name: str, package: bool) -> str:
    """The dotted name that `name` was imported from."""
    for one in node.names:
        if (one.asname or one.name.partition(".")[0]) == name or one.name == name:
            if isinstance(node, ast.Import):
                return one.name if one.asname else one.name.partition(".")[0]
            base = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            return ".".join([*base, *([node.module] if node.module else []), one.name])
    raise NotThere(f"no {name} imported in {module}")
