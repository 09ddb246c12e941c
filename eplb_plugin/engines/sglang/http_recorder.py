"""A window from a running SGLang server, through the HTTP interface of its own recorder; the plugin need not be on.

SGLang writes its recording into a folder of its host, `SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR` or /tmp, and this reads
it there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import mismatch
from ...observe.http import ask
from ...statistics import RoutingStatistics
from .dumps import EmptyRecording, read_dump

FOLDER = "/tmp"  # SGLang's default
PER_RANK = ("per_pass", "per_token")  # modes in which every rank writes a file
PATTERN = "expert_distribution_recorder_*.pt"
ARRIVAL_SECONDS = 30.0  # for the files of a recording to be written
# With EPLB on, every rebalance begins the recording afresh, and right after one it holds a pass or none: recordings are
# added up until an expert was selected so often on average, or so long.
SELECTIONS = 32
TRAFFIC_SECONDS = 10.0


@dataclass(frozen=True)
class Recorder:
    """info: what the server's /server_info says. folder: where it writes, as seen from here."""

    url: str
    info: dict[str, Any]
    folder: Path
    api_key: str | None = None

    @property
    def owner_group_size(self) -> int:
        """Ranks that route the same token: all of the EP group without an all-to-all, else each its own."""
        return 1 if self.info.get("moe_a2a_backend") not in (None, "none") else int(self.info.get("ep_size") or 1)

    def header(self) -> dict[str, str]:
        phase = self.info.get("disaggregation_mode")
        return {
            "model": str(self.info.get("model_path", "")), "engine": "sglang",
            "phase": phase if phase in ("prefill", "decode") else "mixed",
        }  # fmt: skip

    def record(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> RoutingStatistics:
        """The window of the coming `seconds`: with EPLB on, of its newest passes since a rebalance, and of
        as many after that as it takes.

        Raises PluginError if the server records nothing, does not answer, writes elsewhere, or serves no traffic.
        """
        mode, eplb = self.info.get("expert_distribution_recorder_mode"), bool(self.info.get("enable_eplb"))
        if mode not in ("stat", *PER_RANK) and not (eplb and mode in (None, "stat_approx")):
            fix = "start the server with --expert-distribution-recorder-mode stat, or per_token for co-activation"
            raise mismatch(f"{self.url}: recorder mode", found=mode, expected="stat, per_pass or per_token", fix=fix)
        if not eplb:  # EPLB records always, and a start would begin its window afresh
            ask(self.url, "/start_expert_distribution_record", self.api_key)
        sleep(seconds)
        return self._gathered(mode) if eplb else self._dumped(mode, eplb)

    def _gathered(self, mode: str | None) -> RoutingStatistics:
        deadline = time.monotonic() + TRAFFIC_SECONDS
        window: RoutingStatistics | None = None
        while True:
            late = time.monotonic() > deadline
            try:
                newest = self._dumped(mode, eplb=True)
            except EmptyRecording:
                if late and window is None:
                    raise
            else:
                window = newest if window is None else window.merge(newest)
            if window is not None and (late or window.load.mean() >= SELECTIONS):
                return window

    def _dumped(self, mode: str | None, eplb: bool) -> RoutingStatistics:
        known = set(self.folder.glob(PATTERN))
        ask(self.url, "/dump_expert_distribution_record", self.api_key)
        if not eplb:
            ask(self.url, "/stop_expert_distribution_record", self.api_key)
        # mode stat sums over ranks; in the others every rank writes its own
        files = self._written(known, int(self.info.get("tp_size") or 1) if mode in PER_RANK else 1)
        return read_dumps(files, self.owner_group_size)

    def _written(self, known: set[Path], expected: int) -> list[Path]:
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while True:
            files = sorted(set(self.folder.glob(PATTERN)) - known)
            sizes = [file.stat().st_size for file in files]
            time.sleep(0.5)  # SGLang writes in place: a file is whole when it has stopped growing
            if len(files) >= expected and all(sizes) and sizes == [file.stat().st_size for file in files]:
                return files
            if time.monotonic() > deadline:
                found = f"{len(files)} new files in {self.folder}"
                fix = "pass --dumps with the server's SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR, as seen from this host"
                raise mismatch(f"{self.url}: recording", found=found, expected=expected, fix=fix)


def read_dumps(files: list[Path], owner_group_size: int) -> RoutingStatistics:
    """The files of one recording: one of mode `stat`, or one per rank of the other modes.

    Of ranks that route the same tokens the first file of each group counts. A rank without tokens adds nothing.
    """
    windows: list[RoutingStatistics] = []
    problems: list[EmptyRecording] = []
    for path in files if len(files) == 1 else sorted(files, key=_rank)[::owner_group_size]:
        try:
            windows.append(read_dump(path, owner_group_size))
        except EmptyRecording as error:
            problems.append(error)
    if not windows:
        raise problems[0] if problems else mismatch("recording", found="no file", expected="one", fix="name one")
    window = windows[0]
    for other in windows[1:]:
        window = window.merge(other)
    return window


def _rank(path: Path) -> tuple[int, str]:
    """From a name that ends in _RANK.pt."""
    last = path.stem.rsplit("_", 1)[-1]
    return (int(last) if last.isdigit() else 0, path.name)
