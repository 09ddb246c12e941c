"""Text of several kinds that is on any machine with Python and this repository's environment; nothing is fetched."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sysconfig
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

HELD_OUT = 0.1  # of the files of each kind
_SHORTEST = 400  # characters of a document worth reading
_MOST = 3_000_000  # characters of one kind: kinds are equally large, or what there is


def kinds(*, held_out: bool = False) -> dict[str, list[str]]:
    """kind -> its documents, in an order that does not depend on the machine's file system.

    The same file is always on the same side of the split.
    """
    found = {name: _documents(files(), held_out) for name, files in _KINDS.items()}
    return {name: documents for name, documents in found.items() if documents}


def _documents(files: Iterable[Path], held_out: bool) -> list[str]:
    # by content, because the same licence lies in many packages
    texts: dict[str, str] = {}
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        digest = hashlib.sha256(text.encode()).hexdigest()
        if len(text) >= _SHORTEST and (int(digest[:8], 16) / 2**32 < HELD_OUT) == held_out:
            texts[digest] = text
    ordered = [texts[digest] for digest in sorted(texts)]
    random.Random(0).shuffle(ordered)
    kept, characters = [], 0
    for text in ordered:
        if characters < _MOST:
            kept.append(text)
            characters += len(text)
    return kept


def _programs() -> Iterable[Path]:
    return (file for file in _stdlib().rglob("*.py") if not {"site-packages", "encodings", "test"} & set(file.parts))


def _headers() -> Iterable[Path]:
    specification = importlib.util.find_spec("torch")
    assert specification is not None and specification.origin is not None
    own = Path(sysconfig.get_path("include")).rglob("*.h")
    return chain(own, (Path(specification.origin).parent / "include" / "ATen").rglob("*.h"))


def _prose() -> Iterable[Path]:
    return chain(_packages().glob("*.dist-info/METADATA"), _stdlib().glob("pydoc_data/topics.py"))


def _licences() -> Iterable[Path]:
    return (file for file in _packages().glob("*.dist-info/**/*") if file.is_file() and "LICEN" in file.name.upper())


def _tables() -> Iterable[Path]:
    return _stdlib().glob("encodings/*.py")


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


_KINDS: dict[str, Callable[[], Iterable[Path]]] = {
    "programs": _programs,
    "headers": _headers,
    "prose": _prose,
    "licences": _licences,
    "tables": _tables,
}
