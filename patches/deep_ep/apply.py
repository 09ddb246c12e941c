#!/usr/bin/env python3
"""Apply per-expert overlap to a checkout of DeepEP: `apply.py CHECKOUT`; with `--check`, only say what would change.

The edits are `ed` scripts: line numbers of the files they were made for, and lines of our own. So every file is
compared with the SHA-256 in edits.json first, and the result after; if one differs, nothing is written. The files are
the same in all commits of DeepEP's main from `first` to `last`; of other versions apply.py says which one it found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMAND = re.compile(r"(\d+)(?:,(\d+))?([acd])")


class PatchError(Exception):
    """One line for the user."""


def edited(text: str, script: str) -> str:
    """`text` after the commands a, c and d of an ed script, which go from the end of the file to its beginning."""
    lines, commands = text.splitlines(keepends=True), iter(script.splitlines(keepends=True))
    for command in commands:
        match = COMMAND.fullmatch(command.rstrip("\n"))
        if match is None:
            raise PatchError(f"not an ed command: {command.strip()!r}")
        first, last, kind = int(match[1]), int(match[2] or match[1]), match[3]
        if not (kind == "a" and first == 0) and not 1 <= first <= last <= len(lines):
            raise PatchError(f"{command.strip()!r}: the file has {len(lines)} lines")
        new = []
        if kind != "d":
            for line in commands:
                if line == ".\n":
                    break
                new.append(line)
        start, end = (first, first) if kind == "a" else (first - 1, last)
        lines[start:end] = new
    return "".join(lines)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def other_version(checkout: Path) -> str:
    """Which DeepEP that the edits do not fit lies there, as far as its files tell; empty if they do not."""
    package = checkout / "deep_ep"
    if not package.is_dir():
        newer = (checkout / "deep_ep_v25").is_dir()
        return "SGLang's DeepEP 2.5, which has no low-latency kernels" if newer else "no folder deep_ep"
    if (package / "buffer.py").exists():
        return "DeepEP before its second version (deep_ep/buffer.py, csrc/kernels/internode_ll.cu)"
    python = package / "buffers" / "legacy.py"
    if not python.exists():
        return "DeepEP without deep_ep/buffers/legacy.py: version 2.5 has removed the low-latency kernels"
    if not (checkout / "csrc").exists():
        return "an installed package, without the sources of its kernels"
    return "SGLang's fork, whose kernels differ" if b"use_nvfp4" in python.read_bytes() else ""


def results(checkout: Path) -> dict[Path, str]:
    """File -> what it becomes, of all files, or PatchError. Files that are edited already are left out."""
    manifest = json.loads((HERE / "edits.json").read_text())
    fix = f"check out {manifest['first']} of {manifest['repository']}"
    expected = f"DeepEP's main from {manifest['first'][:10]} (which vLLM 0.32 builds) to {manifest['last'][:10]}"
    if other := other_version(checkout):
        raise PatchError(f"{checkout}: found {other}, expected {expected}; fix: {fix}")
    made = {}
    for name, file in manifest["files"].items():
        path = checkout / name
        try:
            text = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise PatchError(f"{path}: cannot be read ({error}), expected {expected}; fix: {fix}") from None
        found = digest(text)
        if found == file["after"]:
            continue
        if found != file["before"]:
            raise PatchError(f"{path}: found SHA-256 {found[:12]}…, expected that of {expected}; fix: {fix}")
        new = edited(text, (HERE / "edits" / file["edits"]).read_text())
        if digest(new) != file["after"]:
            raise PatchError(f"{file['edits']}: does not give the file it should; fix: get this folder again")
        made[path] = new
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--check", action="store_true", help="say what would be done, write nothing")
    words = parser.parse_args()
    try:
        made = results(words.checkout)
        for path, text in [] if words.check else made.items():
            scratch = path.with_name(f".{path.name}.peo")
            scratch.write_bytes(text.encode())
            os.replace(scratch, path)
    except (PatchError, OSError) as error:
        print(f"apply.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for path in made:
        print(f"{path}: {'would be edited' if words.check else 'edited'}")
    if not made:
        print("nothing to do: every file is edited already")


if __name__ == "__main__":
    main()
