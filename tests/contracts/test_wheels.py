"""Wheels come from pip once, whole or not at all, and only what can be parsed is kept."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts import wheels


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip was asked for. The first two tries fail; the third brings a wheel of three files."""
    asked: list[str] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        if len(asked) < 3:
            return subprocess.CompletedProcess(command, 1, "", "notice\nERROR: the index is away\n")
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "some-1.0-py3-none-any.whl", "w") as archive:
            for name in ("some/__init__.py", "some/_C.so", "some-1.0.dist-info/METADATA"):
                archive.writestr(name, "")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheels.subprocess, "run", run)
    monkeypatch.setattr(wheels.time, "sleep", lambda seconds: None)
    return asked


def test_downloaded_once_and_again_where_the_index_fails(pip: list[str]) -> None:
    """The very release is asked for: `==1.0` would take a `1.0+cpu` too."""
    folder = wheels.unpacked("some", "1.0")
    assert wheels.unpacked("some", "1.0") == folder
    assert pip == ["some===1.0"] * 3
    assert [path.name for path in sorted(folder.rglob("*.*")) if path.is_file()] == ["__init__.py"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_last_line_of_pip_says_why_there_is_none(pip: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "PAUSES", (0.0,))
    with pytest.raises(wheels.WheelMissing, match=r"^pip download some===1\.0: ERROR: the index is away$"):
        wheels.unpacked("some", "1.0")
    assert not list(wheels.kept_folder("some", "1.0").parent.iterdir())


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_an_index_tests_are_skipped_but_not_in_ci(
    ci: str, outcome: type[BaseException], wheel: Callable[..., object], pip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody reads what was skipped, a check that did not run must not look like one that passed."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(wheels, "PAUSES", ())
    with pytest.raises(outcome, match="the index is away"):
        wheel("some", "1.0")
