"""The processes of a running server: which there are, what memory they hold, and stopping a rank for a while."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

GROWTH_SHARE, GROWTH_BYTES = 0.05, 48 << 20  # more than both of it is growth


@dataclass(frozen=True)
class Process:
    """name: as the process calls itself, e.g. VLLM::Worker_DP1_EP1."""

    pid: int
    name: str

    def memory(self) -> int | None:
        """Bytes of its own, what it shares with others left out; None if it has ended."""
        with contextlib.suppress(OSError):
            for line in Path("/proc", str(self.pid), "status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) << 10
        return None


def of_session(session: int) -> list[Process]:
    """All of a session, in order of pid."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text()
            if int(stat[stat.rindex(")") + 2 :].split()[3]) == session:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                name = words[0].decode(errors="replace")
                if len(name.split()) == 1 and not name.startswith("VLLM::"):
                    name = " ".join(
                        [Path(name).name, *(Path(word.decode(errors="replace")).name for word in words[1:3])]
                    )
                found.append(Process(int(folder.name), name.strip()))
    return sorted(found, key=lambda one: one.pid)


def ranks(processes: Sequence[Process]) -> list[Process]:
    """Those that compute: one a rank."""
    return [one for one in processes if one.name.startswith("VLLM::Worker")]


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    """A process that does nothing inside this block, whatever happens in it, and goes on after it."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


def growth(samples: Sequence[float]) -> float:
    """Bytes between the second quarter of a run and its last, by medians: the first quarter fills caches."""
    quarter = len(samples) // 4
    if quarter == 0:
        return 0.0
    return median(samples[-quarter:]) - median(samples[quarter : 2 * quarter])


def grown(memory: Mapping[str, Sequence[float]]) -> list[str]:
    """The processes that hold more and more; memory: samples of each, in order of time."""
    found = []
    for name, samples in memory.items():
        before = samples[: len(samples) // 2]
        if len(before) and growth(samples) > max(GROWTH_BYTES, GROWTH_SHARE * median(before)):
            found.append(name)
    return found
