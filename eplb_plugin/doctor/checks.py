"""What a check is, what comes of one, and how several are run and shown."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from ..errors import PluginError, mismatch
from .site import Skipped

Figures = dict[str, Any]
FIX = "report it, with the JSON file of this command"
MOST_SECONDS = 600.0  # of all checks together
Where = TypeVar("Where")


@dataclass(frozen=True)
class Check(Generic[Where]):
    """proves: in one sentence, what holds if it does not fail. run: raises if it does not, or Skipped."""

    name: str
    proves: str
    run: Callable[[Where], Figures]


@dataclass(frozen=True)
class Result:
    """detail: what is wrong, or why nothing was checked. trace: where, for whoever mends it."""

    name: str
    proves: str
    status: Literal["ok", "failed", "skipped"]
    detail: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0
    trace: str = ""


def run_checks(checks: Iterable[Check[Where]], where: Where) -> Iterator[Result]:
    """One after the other. Those that do not begin within MOST_SECONDS are skipped."""
    began = time.monotonic()
    for check in checks:
        if time.monotonic() - began > MOST_SECONDS:
            yield Result(check.name, check.proves, "skipped", f"{MOST_SECONDS:.0f} s were over")
        else:
            yield run_check(check, where)


def run_check(check: Check[Where], where: Where) -> Result:
    """Whatever goes wrong in it is its result."""
    began = time.monotonic()

    def result(status: Literal["ok", "failed", "skipped"], detail: str = "", **more: Any) -> Result:
        return Result(check.name, check.proves, status, detail, seconds=time.monotonic() - began, **more)

    try:
        figures = check.run(where)
    except Skipped as reason:
        return result("skipped", str(reason))
    except Exception as error:
        return result("failed", one_line(error), trace=traceback.format_exc())
    return result("ok", figures=figures)


def one_line(error: Exception) -> str:
    """A PluginError says all that is needed; of anything else, also its kind and the place where it was raised."""
    if isinstance(error, PluginError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return " ".join(f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}".split())


def expect_equal(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit. Raises PluginError that names the first entry that is not."""
    found, expected = found.cpu(), expected.cpu()
    if found.shape != expected.shape or found.dtype != expected.dtype:
        shapes = (f"{list(one.shape)} {one.dtype}" for one in (found, expected))
        raise mismatch(what, found=next(shapes), expected=next(shapes), fix=FIX)
    wrong = torch.nonzero(found != expected)
    if len(wrong):
        first = tuple(wrong[0].tolist())
        shown = f"{found[first].item()} at {list(first)} ({len(wrong)} of {found.numel()} entries differ)"
        raise mismatch(what, found=shown, expected=expected[first].item(), fix=FIX)


def expect(what: str, holds: bool, *, found: object, expected: object) -> None:
    if not holds:
        raise mismatch(what, found=found, expected=expected, fix=FIX)
