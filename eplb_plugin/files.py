"""Files: written atomically, and refused in one line when they are not what they should be.

Ours are safetensors files with a versioned header; others' are read as bytes first.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import PluginError, mismatch
from .file_kinds import kind_of

FORMAT_VERSION = 1
LARGEST = 256 * 2**20  # bytes of a file that is read whole
Arrays = dict[str, NDArray[Any]]
_WRITERS = {"placement": "plan", "statistics": "record"}


def expanded(path: str | os.PathLike[str]) -> str:
    """`~` and `$NAME` in a path that no shell has seen, such as one in a settings file."""
    text = os.fspath(path)
    return text if "\0" in text else os.path.expandvars(os.path.expanduser(text))


def unexpanded(path: str) -> str | None:
    """What `expanded` could not replace: `~name` of no user, or `$NAME` that is not set; None if nothing."""
    found = re.match(r"~[^/]*", path) or re.search(r"\$(\w+|\{[^}]*\})", path)
    return found.group() if found else None


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside `path` and rename over it, so that a reader or a crash never sees half a file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")  # mkstemp would make it unreadable to others
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_arrays(path: str | os.PathLike[str], kind: str, arrays: Arrays, header: Mapping[str, Any]) -> None:
    """Write `arrays` under a header naming the kind of file, the format version and what the caller adds."""
    text = json.dumps({"kind": kind, "version": FORMAT_VERSION, **header}, sort_keys=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomic(path, save(contiguous, metadata={"eplb_plugin": text}))


def load_arrays(path: str | os.PathLike[str], kind: str) -> tuple[Arrays, dict[str, Any]]:
    """Read a file of this `kind`. Raises PluginError if it is missing, truncated, foreign or of another version."""
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        header = json.loads(metadata.get("eplb_plugin", "null"))
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise _unreadable(path, kind, error) from None
    if not isinstance(header, dict) or header.get("kind") != kind or header.get("version") != FORMAT_VERSION:
        known = isinstance(header, dict)
        found = f"{header.get('kind')} v{header.get('version')}" if known else "no eplb_plugin header"
        expected, other = f"{kind} v{FORMAT_VERSION}", kind_of(path)
        fix = f"pass a {kind} file of this version" if other is None or other.name == kind else other.belongs
        raise mismatch(str(path), found=found, expected=expected, fix=fix)
    return arrays, header


def _unreadable(path: str | os.PathLike[str], kind: str, error: Exception) -> PluginError:
    """Says what the file is instead, where that can be told: a parser's own words would mislead."""
    known = None if isinstance(error, OSError) else kind_of(path)
    reason, fix = str(error), f"pass what `eplb-plugin {_WRITERS[kind]}` has written"
    if known is not None and known.name != kind:
        reason, fix = f"it is {known.what}", known.belongs
    elif known is None and isinstance(error, SafetensorError):
        reason = "it is of no kind that is known"
    return PluginError(f"{path}: cannot be read as a {kind} file ({reason}); fix: {fix}")


def header_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a file of ours, of any kind; empty for any other file, which its reader will refuse."""
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("eplb_plugin", "null"))
    except (OSError, SafetensorError, ValueError, AttributeError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def read_foreign(path: str | os.PathLike[str], kind: str) -> bytes:
    """The bytes of a file of another program. Raises PluginError if it cannot be read or is absurdly large."""
    try:
        size = os.path.getsize(path)
        if size > LARGEST:
            expected = f"<= {LARGEST >> 20} MiB"
            raise mismatch(str(path), found=f"{size >> 20} MiB", expected=expected, fix="make it of fewer tokens")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise PluginError(f"{path}: cannot be read as a {kind} ({reason}); fix: pass a readable file") from None


def has_kind(path: str | os.PathLike[str], kind: str) -> bool:
    """Whether a file is a JSON object that calls itself so; False also for what cannot be read."""
    try:
        record = json.loads(read_foreign(path, "benchmark result"))
    except (PluginError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("kind") == kind
