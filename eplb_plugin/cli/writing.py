"""Writing a file that the user has named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import PluginError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises PluginError if what is done inside cannot write `path`."""
    try:
        yield
    except OSError as error:
        raise PluginError(f"{path}: cannot be written ({error.strerror or error}); fix: name another file") from None
