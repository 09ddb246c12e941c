"""Where a benchmark's results go: always a JSON file, and a table or the same JSON on the terminal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def output_parser(name: str) -> argparse.ArgumentParser:
    """For scripts/`name`, with --out and --json; the benchmark adds what is its own."""
    parser = argparse.ArgumentParser(prog=f"scripts/{name}")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / f"{name}.json")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    return parser


def put_out(results: Any, options: argparse.Namespace, show: Callable[[], None]) -> int:
    """Exit code. options: of an `output_parser`; show: prints tables."""
    text = json.dumps(results, indent=2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")
    if options.json:
        print(text)
    else:
        show()
    return 0
