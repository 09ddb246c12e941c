"""What survives a restart: of every model the placement that has served, and the newest window.

The planning rank writes them; a thread of its own does the work, because in SGLang that rank's scheduler must not wait
for a disk. A file that cannot be written or does not fit is a line in the log and never stops a server.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

from ..deployment import Deployment
from ..errors import PluginError, mismatch
from ..placement import KIND as PLACEMENT
from ..placement import Placement, load_placement
from ..statistics import KIND as STATISTICS
from ..statistics import RoutingStatistics, load_window

logger = logging.getLogger("eplb_plugin")
Write = Callable[[], None]
Header = dict[str, Any]
Kept = TypeVar("Kept", Placement, RoutingStatistics)


@dataclass(frozen=True)
class Earlier:
    """What an earlier run left, or the user named; None where there is nothing that fits."""

    placement: Placement | None = None
    window: RoutingStatistics | None = None


class StateDirectory:
    """One folder; the files of a model carry its name and the server's phase, so that several may share it."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._writes: Queue[Write] = Queue()
        self._thread: threading.Thread | None = None
        self._failed = False

    def placement_file(self, deployment: Deployment) -> Path:
        return self.folder / f"{deployment.stem}.{PLACEMENT}.safetensors"

    def window_file(self, deployment: Deployment) -> Path:
        return self.folder / f"{deployment.stem}.{STATISTICS}.safetensors"

    def keep_placement(self, deployment: Deployment, placement: Placement) -> None:
        path, header = self.placement_file(deployment), deployment.placement_header()
        self._later(lambda: placement.save(path, header))

    def keep_window(self, deployment: Deployment, window: RoutingStatistics) -> None:
        path, header = self.window_file(deployment), {**deployment.header(), **measures(window)}
        self._later(lambda: window.save(path, header))

    def earlier(self, deployment: Deployment) -> Earlier:
        """What an earlier run of this deployment left. Never raises: what does not fit is told in the log."""
        return Earlier(
            _taken_up(self.placement_file(deployment), deployment, read_placement),
            _taken_up(self.window_file(deployment), deployment, _read_window),
        )

    @property
    def idle(self) -> bool:
        """Whether all is written that was handed over."""
        return self._writes.unfinished_tasks == 0

    def _later(self, write: Write) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="eplb_plugin state", daemon=True)
            self._thread.start()
        self._writes.put(write)

    def _work(self) -> None:
        while True:
            write = self._writes.get()
            try:
                write()
                self._failed = False
            except Exception as error:  # a full disk must not stop a server
                if not self._failed:  # once, not at every rebalance
                    logger.warning("state_directory %s: cannot be written (%s)", self.folder, error)
                self._failed = True
            finally:
                self._writes.task_done()


def measures(window: RoutingStatistics) -> dict[str, int]:
    """For the header of a window's file."""
    top_k = {} if window.sample is None else {"top_k": int(window.sample.shape[2])}
    return {**top_k, "tokens": int(window.num_tokens.max())}


def read_placement(path: str | os.PathLike[str], deployment: Deployment) -> tuple[Placement, Header]:
    """A placement file made for this deployment, by either engine. Raises PluginError for any other."""
    placement, header = load_placement(path)
    deployment.refuse_placement(path, header, placement.phy2log, placement.layer_ids)
    return placement, header


def _read_window(path: Path, deployment: Deployment) -> tuple[RoutingStatistics, Header]:
    """Likewise a window."""
    window, header = load_window(path)
    deployment.refuse_window(path, header, window.num_experts, window.layer_ids)
    return window, header


def _taken_up(
    path: Path, deployment: Deployment, read: Callable[[Path, Deployment], tuple[Kept, Header]]
) -> Kept | None:
    try:
        if not path.exists():
            return None
        kept, header = read(path, deployment)
        if header.get("engine", deployment.engine) != deployment.engine:
            fix = "name another state_directory"
            raise mismatch(f"{path}: engine", found=header["engine"], expected=deployment.engine, fix=fix)
        return kept
    except (PluginError, OSError, ValueError) as error:  # ValueError: a path that no file can have
        logger.warning("not taken up from an earlier run: %s", error)
        return None
