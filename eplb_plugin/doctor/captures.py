"""Check: what a background thread may do while a graph is captured. The plugin begins no move before captures are over;
this says what would happen to one that did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from ..migration.background import Background
from ..migration.checksum import broken, seal
from .checks import Check, Figures, expect, expect_equal, one_line
from .memory import fake_rows
from .site import Site, Skipped

PAUSE = 1e-3  # seconds between two actions of the thread
PATIENCE = 30.0  # seconds until the thread is at work


def check_captures(site: Site) -> Figures:
    """Each action of a migration is repeated beside a capture, until no capture works any more."""
    if not site.graphs:
        raise Skipped(f"no graph is captured on a {site.device.type}")
    layer = fake_rows(site.device, 4, site.pick(1 << 22, 4096))
    rows = torch.zeros(4, layer.row_bytes, dtype=torch.uint8, device=site.device)
    slots, identity = torch.arange(4), torch.arange(4)
    seal(rows, identity)
    kept: list[torch.Tensor] = []  # so that memory is new every time
    actions: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "read": lambda: layer.read(slots, rows),
        "seal": lambda: seal(rows, identity),
        "check seals": lambda: broken(rows, identity),
        "allocate": lambda: kept.append(torch.empty(site.pick(1 << 25, 1), device=site.device, dtype=torch.uint8)),
        "wait for an event": lambda: torch.accelerator.current_stream().record_event().synchronize(),
    }
    background, figures = Background(site.device), Figures()
    for name, action in actions.items():
        found = figures[f"capture beside: {name}"] = _beside(site, background, action)
        try:
            _capture(site, f"a capture after one beside {name}")
        except Exception as error:
            figures[f"capture beside: {name}"] = f"{found}; after it, no capture works: {one_line(error)}"
            break
    resting = figures["capture beside: nothing"]
    expect("a capture beside a thread that rests", not resting, found=resting, expected="sound")
    return {what: line or "sound" for what, line in figures.items()}


def _beside(site: Site, background: Background, action: Callable[[], object]) -> str:
    """-> what broke the capture, or the thread, if anything."""
    running, over = threading.Event(), threading.Event()

    def repeat() -> None:
        while not over.wait(PAUSE):
            action()
            running.set()

    found, work = "", background.beside(repeat)
    running.wait(PATIENCE)
    try:
        _capture(site, "the capture")
    except Exception as error:
        found = one_line(error)
    over.set()
    try:
        work.result()
    except Exception as error:
        found = "; ".join(filter(None, [found, f"in the thread: {one_line(error)}"]))
    return found


def _capture(site: Site, what: str) -> None:
    total = torch.zeros((), dtype=torch.int64, device=site.device)

    def add() -> None:
        total.add_(1)
        time.sleep(20 * PAUSE)  # of the host, while it captures: for what the thread does meanwhile

    replay = site.capture(add)
    total.zero_()
    for _ in range(3):
        replay()
    expect_equal(f"{what}, replayed three times", total, torch.tensor(3))


CAPTURES = Check(
    "captures",
    "A graph can be captured beside a thread that rests; which calls of a busy one would break it",
    check_captures,
)
