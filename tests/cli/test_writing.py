"""Files that the user has named: what cannot be written is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from eplb_plugin import PluginError
from eplb_plugin.cli.writing import writing


def test_what_cannot_be_written_is_one_line() -> None:
    """With the system's reason, or the error's own words; other errors are nobody's to hide."""
    line = r"^a/b: cannot be written \(No space left on device\); fix: name another file$"
    with pytest.raises(PluginError, match=line), writing(Path("a/b")):
        raise OSError(28, "No space left on device")
    with pytest.raises(PluginError, match=r"cannot be written \(odd\)"), writing(Path("a/b")):
        raise OSError("odd")
    with pytest.raises(KeyError), writing(Path("a/b")):
        raise KeyError("x")
    with writing(Path("a/b")):
        pass
