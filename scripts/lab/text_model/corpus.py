"""Text of several kinds that is on any machine with Python and this repository's environment; nothing is fetched."""

from __future__ import annotations

import hashlib
import importlib
import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

HELD_OUT = 0.15  # of the documents of each kind
_SHORTEST = 200  # characters of a document worth reading
_MOST = 3_000_000  # characters of one kind to learn from


@cache
def kinds(*, held_out: bool = False) -> dict[str, list[str]]:
    """kind -> its documents, in an order that does not depend on the machine's file system.

    A text is on one side of the split by its own content, blanks and case aside: wherever else it lies, and whatever
    is installed later, it is never both learned and held out. Kinds that this machine lacks are left out.
    """
    found = {name: _documents(texts(), held_out) for name, texts in _KINDS.items()}
    return {name: documents for name, documents in found.items() if documents}


def fingerprint(text: str) -> str:
    """Equal for texts that differ in blanks and case alone."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def _documents(texts: Iterable[str], held_out: bool) -> list[str]:
    chosen: dict[str, str] = {}
    for text in texts:
        mark = fingerprint(text)
        if len(text) >= _SHORTEST and (int(mark[:8], 16) / 2**32 < HELD_OUT) == held_out:
            chosen[mark] = text
    ordered = [chosen[mark] for mark in sorted(chosen)]
    random.Random(0).shuffle(ordered)
    kept, characters = [], 0
    for text in ordered:
        if characters < _MOST:
            kept.append(text)
            characters += len(text)
    return kept


def _programs() -> Iterator[str]:
    left_out = {"site-packages", "encodings", "pydoc_data", "test", "tests", "idle_test"}
    return _read(file for file in _stdlib().rglob("*.py") if not left_out & set(file.parts))


def _headers() -> Iterator[str]:
    include = _packages() / "torch" / "include"
    # not ATen/ops: thousands of generated files that differ in a name
    folders = [include / name for name in ("ATen/core", "ATen/native", "c10", "torch/csrc")]
    return _read(chain.from_iterable(folder.rglob("*.h") for folder in (Path(sysconfig.get_path("include")), *folders)))


def _prose() -> Iterator[str]:
    topics = importlib.import_module("pydoc_data.topics").topics
    return chain(topics.values(), _read(chain(_packages().glob("*.dist-info/METADATA"), _packages().rglob("*.md"))))


def _licences() -> Iterator[str]:
    # by paragraph: the same few licences lie in most packages under other names and years
    files = (file for file in _packages().glob("*.dist-info/**/*") if file.is_file() and "LICEN" in file.name.upper())
    return (part for text in _read(files) for part in re.split(r"\n\s*\n", text))


def _tables() -> Iterator[str]:
    return _read(_stdlib().glob("encodings/*.py"))


def _read(files: Iterable[Path]) -> Iterator[str]:
    return (file.read_text(encoding="utf-8", errors="ignore") for file in files)


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


_KINDS: dict[str, Callable[[], Iterable[str]]] = {
    "programs": _programs,
    "headers": _headers,
    "prose": _prose,
    "licences": _licences,
    "tables": _tables,
}
