"""What the demo leaves beside its table: a report to look at, and settings that fit the traffic it has just served.

Both from the window and the placement that the plugin's server has kept, by the tools that a user has.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from eplb_plugin.bench.server import ServerError

LAYOUT = ["--nodes", "2", "--ranks-per-node", "1"]


def leave_advice(out: Path, engine: str, say: Callable[[str], None]) -> None:
    """Write report.html, advice.json and eplb.yaml into OUT. Raises ServerError if the server kept nothing or a tool
    fails."""
    windows, placements = (
        sorted((out / "state").glob(f"*.{kind}.safetensors")) for kind in ("statistics", "placement")
    )
    if len(windows) != 1 or len(placements) != 1:
        raise ServerError(f"the server kept no window or placement in {out / 'state'}, or those of another model")
    (window,), (placement,) = windows, placements
    advice = _tool("advise", window, *LAYOUT, "--engine", engine, "--out", out / "eplb.yaml")
    _tool("config", "check", out / "eplb.yaml")
    (out / "advice.json").write_text(_tool("advise", window, *LAYOUT, "--engine", engine, "--json"))
    measured = [
        "--bench",
        out / "results.json",
        "--log",
        out / "affinity" / "server.log",
        "--advice",
        out / "advice.json",
    ]
    planned = ["--trace", window, "--placement", placement, *LAYOUT]
    _tool("report", "--out", out / "report.html", "--title", f"Demo on {engine}", *planned, *measured)
    for line in advice.splitlines():
        if line.startswith(("now, without EPLB", "advice: ")):
            say(line)
    say(f"report: {out / 'report.html'}; settings for this traffic: {out / 'eplb.yaml'}")


def _tool(*words: object) -> str:
    """`eplb-plugin WORDS`; its output."""
    program = str(Path(sys.executable).with_name("eplb-plugin"))
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise ServerError(f"eplb-plugin {words[0]} ended with exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout
