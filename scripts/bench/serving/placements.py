"""Ordering placements from a running server whose workers have loaded `switch_plugin`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eplb_plugin.bench.server import Server, ServerError

PLUGIN = Path(__file__).with_name("switch_plugin")


def switching_environment(folder: Path) -> dict[str, str]:
    """What makes a server's workers take orders from `folder`."""
    path = os.pathsep.join([str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"EPLB_BENCH_PLACEMENTS": str(folder), "PYTHONPATH": path}


class Placements:
    """The client's side. drive: sends the server some requests, without which it takes no step and no order."""

    def __init__(self, folder: Path, server: Server, drive: Callable[[], object], seconds: float = 240.0) -> None:
        self._folder, self._server, self._drive, self._seconds = folder, server, drive, seconds
        self._number = 0

    def order(self, policy: str, dispatch: str) -> dict[str, Any]:
        """Until the placement is planned; it is in force as soon as the engine answers again. Raises ServerError.

        policy: one of the plugin's, or engine: the placement that the server began with.
        """
        self._number += 1
        order = {"number": self._number, "policy": policy, "dispatch": dispatch}
        part = self._folder / "order.part"
        part.write_text(json.dumps(order))
        part.replace(self._folder / "order.json")
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            self._drive()
            if (answer := self._answer()) is not None:
                if "error" in answer:
                    raise ServerError(f"placement {policy}, {dispatch}: {answer['error']}")
                self._drive()  # waits for the move: experts travel while the engine stands still
                return answer
        raise ServerError(
            f"placement {policy}, {dispatch} was not made in {self._seconds:.0f} s\n{self._server.tail()}"
        )

    def _answer(self) -> dict[str, Any] | None:
        try:
            answer = json.loads((self._folder / "answer.json").read_text())
        except FileNotFoundError:
            return None
        return answer if answer["number"] == self._number else None
