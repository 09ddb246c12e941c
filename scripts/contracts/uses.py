"""What the plugin does with code that it does not own, read from its own files: imports, calls, attributes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from eplb_plugin.engines.hooks import Hook

ROOT = Path(__file__).resolve().parents[2]


def plugin_files(pattern: str) -> list[PythonFile]:
    return [PythonFile(path) for path in sorted((ROOT / "eplb_plugin").glob(pattern))]


def hooks_of(engine: str) -> tuple[list[Hook], list[Hook]]:
    """All hooks of an engine's adapter, whichever of its modules holds them; the engine has to be installed.

    The second ones are for one thing that lies elsewhere in every release.
    """
    package = import_module(f"eplb_plugin.engines.{engine}")
    modules = [import_module(f"{package.__name__}.{one.name}") for one in iter_modules(package.__path__)]
    values = [value for module in modules for value in vars(module).values()]
    rows = [row for value in values for row in (value if isinstance(value, tuple) else (value,))]
    found = {row.target: row for row in rows if isinstance(row, Hook)}
    by_name = [row for module in modules for row in getattr(module, "BY_NAME", ())]
    return [row for row in found.values() if row not in by_name], list(dict.fromkeys(by_name))


@dataclass(frozen=True)
class Shape:
    """How a call passes its arguments. open: with `*args` or `**options` besides."""

    positional: int
    keywords: frozenset[str]
    open: bool

    @classmethod
    def of(cls, call: ast.Call) -> Shape:
        plain = [one for one in call.args if not isinstance(one, ast.Starred)]
        keywords = frozenset(one.arg for one in call.keywords if one.arg is not None)
        is_open = len(plain) < len(call.args) or len(keywords) < len(call.keywords)
        return cls(len(plain), keywords, is_open)


@dataclass(frozen=True)
class Use:
    """where: file and line. name: what is imported (`module:name`), or an attribute's name. call: if it is called.

    owner: the last name of what an attribute is of, e.g. `agent` of `self.agent.transfer`.
    """

    where: str
    name: str
    call: Shape | None
    owner: str = ""


class PythonFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.title = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        self._tree = ast.parse(path.read_text())

    def imports(self, packages: tuple[str, ...]) -> Iterator[Use]:
        """Every name imported from one of the packages, and where it is called or something of it is used."""
        theirs = {name: target for name, target in self._imported.items() if _package(target) in packages}
        yield from (Use(self.title, target, None) for target in theirs.values())
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name | ast.Attribute) and (dotted := _dotted(node)) and dotted[0] in theirs:
                yield Use(self._at(node), ".".join([theirs[dotted[0]], *dotted[1:]]), self._calls.get(id(node)))

    def attributes(self) -> Iterator[Use]:
        """Every attribute read or set, also by name in `getattr(…)`, `hasattr(…)` and `dataclasses.replace(…)`."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute):
                yield Use(self._at(node), node.attr, self._calls.get(id(node)), _last(node.value))
            elif isinstance(node, ast.Call) and _last(node.func) in ("getattr", "hasattr", "setattr"):
                if isinstance(node.args[1], ast.Constant):
                    yield Use(self._at(node), str(node.args[1].value), None, _last(node.args[0]))
            elif isinstance(node, ast.Call) and _last(node.func) in ("replace", "_replace"):
                yield from (Use(self._at(node), one.arg, None) for one in node.keywords if one.arg)

    def words(self) -> set[str]:
        """Its strings: names of attributes that a loop goes through."""
        values = (node.value for node in ast.walk(self._tree) if isinstance(node, ast.Constant))
        return {value for value in values if isinstance(value, str)}

    def of_modules(self) -> set[str]:
        """Attributes of what is imported here, e.g. `array` of `np.array`."""
        chains = (_dotted(node) for node in ast.walk(self._tree) if isinstance(node, ast.Attribute))
        return {name for chain in chains if chain and chain[0] in self._imported for name in chain[1:]}

    def defined(self) -> Iterator[str]:
        """Names of its own that an attribute may be read by: functions, classes, variables, what is set on `self`."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.Assign) and node in self._tree.body:
                yield from (one.id for one in node.targets if isinstance(one, ast.Name))
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _last(node.value) == "self":
                yield node.attr

    @cached_property
    def _calls(self) -> dict[int, Shape]:
        """By the id of the node that is called."""
        return {id(node.func): Shape.of(node) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}

    @cached_property
    def _imported(self) -> dict[str, str]:
        """Local name -> `module:name`, or `module:` for a module."""
        names: dict[str, str] = {}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names |= {one.asname or one.name: f"{node.module}:{one.name}" for one in node.names}
            elif isinstance(node, ast.Import):
                names |= {one.asname or one.name.partition(".")[0]: f"{one.name}:" for one in node.names}
        return names

    def _at(self, node: ast.expr) -> str:
        return f"{self.title}:{node.lineno}"


def _package(target: str) -> str:
    return target.partition(":")[0].partition(".")[0]


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _dotted(node: ast.expr) -> list[str]:
    """The names of `a.b.c`; empty if something else stands at its beginning."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []
