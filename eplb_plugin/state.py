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

from .deployment import Deployment
from .errors import PluginError, mismatch
from .files import load_arrays
from .placement import KIND as PLACEMENT
from .placement import Placement
from .statistics import KIND as STATISTICS
from .statistics import RoutingStatistics, load_window

logger = logging.getLogger("eplb_plugin")
Write = Callable[[], None]


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
        found: list[Placement | RoutingStatistics | None] = []
        for path, read in (
            (self.placement_file(deployment), read_placement),
            (self.window_file(deployment), read_window),
        ):
            try:
                found.append(read(path, deployment, same_engine=True) if path.exists() else None)
            except (PluginError, OSError, ValueError) as error:  # ValueError: a path that no file can have
                logger.warning("not taken up from an earlier run: %s", error)
                found.append(None)
        placement, window = found
        assert placement is None or isinstance(placement, Placement)
        assert window is None or isinstance(window, RoutingStatistics)
        return Earlier(placement, window)

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


def read_placement(path: str | os.PathLike[str], deployment: Deployment, *, same_engine: bool = False) -> Placement:
    """A placement file made for this deployment. Raises PluginError for any other."""
    placement, (_, header) = Placement.load(path), load_arrays(path, PLACEMENT)
    _refuse_engine(path, header, deployment, same_engine)
    deployment.refuse_placement(path, header, placement.phy2log, placement.layer_ids)
    return placement


def read_window(
    path: str | os.PathLike[str], deployment: Deployment, *, same_engine: bool = False
) -> RoutingStatistics:
    """Likewise a window."""
    (_, header), window = load_arrays(path, STATISTICS), load_window(path)
    _refuse_engine(path, header, deployment, same_engine)
    deployment.refuse_window(path, header, window.num_experts, window.layer_ids)
    return window


def _refuse_engine(
    path: str | os.PathLike[str], header: dict[str, object], deployment: Deployment, same_engine: bool
) -> None:
    found = header.get("engine", deployment.engine)
    if same_engine and found != deployment.engine:
        raise mismatch(f"{path}: engine", found=found, expected=deployment.engine, fix="name another state_directory")
