"""Files of one model belong together: what their headers say of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..deployment import base_name
from ..errors import mismatch
from ..files import header_of


def model_of(files: Iterable[Path]) -> str | None:
    """The model that the files name, None if none of them does. Raises PluginError if they name several."""
    named: dict[str, Path] = {}
    for path in files:
        model = header_of(path).get("model")
        if isinstance(model, str) and model:
            named.setdefault(base_name(model), path)
    if len(named) > 1:
        (first, known), (other, path) = list(named.items())[:2]
        raise mismatch(f"{path}: model", found=other, expected=f"{first}, as in {known}", fix="pass files of one model")
    return next(iter(named), None)
