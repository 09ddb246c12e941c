"""What `eplb-plugin advise --json` printed, as far as a report shows it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from ..errors import mismatch
from ..files import read_foreign


class Both(NamedTuple):
    """Of the two directions; null is infinite."""

    forth: float | None
    back: float | None


class Chosen(BaseModel):
    policy: str
    dispatch: str
    redundant: int
    exact: bool = False


class Tried(BaseModel):
    candidate: Chosen
    work_saved: Both
    copies_saved: Both | None
    next_moves: Both
    slots: int
    break_even_tokens: Both | None


class Advice(BaseModel):
    """best: what was chosen; None if there was nothing to choose from, and then no settings either."""

    recording: str
    enable: bool
    best: Chosen | None
    reasons: Sequence[str]
    settings: str | None
    outcomes: Sequence[Tried]

    @property
    def outcome(self) -> Tried | None:
        """That of the best."""
        return next((one for one in self.outcomes if one.candidate == self.best), None)


def read_advice(path: str | os.PathLike[str]) -> Advice:
    """Raises PluginError in one line on anything else."""
    try:
        return Advice.model_validate_json(read_foreign(path, "advice"))
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"[:200]
        fix = "write it with `eplb-plugin advise --json`"
        raise mismatch(str(path), found=found, expected="what `advise --json` prints", fix=fix) from None
