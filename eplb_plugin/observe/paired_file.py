"""The file of a benchmark in paired rounds, as `scripts/serve_bench` writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from ..errors import mismatch
from ..files import has_kind, read_foreign
from .paired import PairedComparison, Round, compare_paired

KIND = "eplb_plugin paired rounds 1"
_NUMBER: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(ge=0.0, lt=1e18, allow_inf_nan=False, strict=True)])


class _Entry(BaseModel):
    arm: Annotated[str, Field(min_length=1)]
    condition: str
    start: int
    round: int
    server: str
    figures: Mapping[str, Any]  # only what is compared has to be a number


class _File(BaseModel):
    """reference: the arm that others are compared with; compared: the figures of the table, in order; shown: those
    after them, whose means alone are of interest."""

    reference: str
    compared: Annotated[list[str], Field(min_length=1)]
    shown: list[str] = []
    rounds: Annotated[list[_Entry], Field(min_length=1)]


def is_paired(path: str | os.PathLike[str]) -> bool:
    """Whether this is such a file; False also for what cannot be read."""
    return has_kind(path, KIND)


@dataclass(frozen=True)
class PairedRounds:
    """What a file says."""

    reference: str
    rounds: list[Round]
    shown: list[str]

    def compare(self, level: float = 0.05) -> PairedComparison:
        return compare_paired(self.rounds, self.reference, level, self.shown)


def read_paired(path: str | os.PathLike[str]) -> PairedRounds:
    """Raises PluginError in one line on anything that cannot be compared."""
    try:
        read = _File.model_validate_json(read_foreign(path, "benchmark result"))
        names = [*read.compared, *read.shown]
        rounds = [
            Round(one.arm, one.condition, one.start, one.round, one.server, _numbers(one.figures, names))
            for one in read.rounds
        ]
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'a figure'}: {first['msg']}"
        raise mismatch(str(path), found=found, expected=KIND, fix="run the benchmark again") from None
    return PairedRounds(read.reference, rounds, read.shown)


def _numbers(figures: Mapping[str, Any], names: list[str]) -> dict[str, float]:
    return {name: _NUMBER.validate_python(figures[name]) for name in names if name in figures}
