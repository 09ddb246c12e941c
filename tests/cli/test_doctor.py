"""`eplb-plugin doctor --gpu`: the command around the checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eplb_plugin.doctor import single, site
from eplb_plugin.doctor.checks import Check

Answer = tuple[int, str, str]


def run(where: object) -> dict[str, int]:
    return {"found": 1}


def fail(where: object) -> dict[str, int]:
    raise RuntimeError("broken")


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine that seems to have a GPU, and these checks."""

    def make(*checks: Check[Any]) -> None:
        examine = single.examine
        monkeypatch.setattr(single, "refuse_no_gpu", lambda: None)
        monkeypatch.setattr(site, "CudaSite", object)
        monkeypatch.setattr(single, "examine", lambda where, file: examine(where, file, checks))

    return make


def test_without_a_gpu_it_is_one_line(call: Callable[..., Answer]) -> None:
    """Found, expected, fix; exit code 2."""
    code, out, err = call("doctor", "--gpu")
    assert (code, out) == (2, "")
    assert err.startswith("eplb-plugin: doctor: found 0 GPUs (torch ")
    assert err.endswith("expected at least 1; fix: run it where the engine will run, in the engine's environment\n")
    assert err.count("\n") == 1


def test_a_file_is_only_of_gpus(call: Callable[..., Answer], tmp_path: Path) -> None:
    """It is not written in silence by the command that prints."""
    code, _, err = call("doctor", "--json", str(tmp_path / "report.json"))
    assert code == 2
    assert "expected a file only with --gpu" in err


def test_it_shows_a_table_and_writes_the_file(
    call: Callable[..., Answer], with_gpu: Callable[..., None], tmp_path: Path
) -> None:
    """Exit code 0 where no check failed."""
    with_gpu(Check("one", "it holds", run))
    code, out, _ = call("doctor", "--gpu", "--json", str(tmp_path / "report.json"))
    assert code == 0
    assert "it holds" in out
    assert json.loads((tmp_path / "report.json").read_text())["checks"][0]["figures"] == {"found": 1}


def test_a_failed_check_is_exit_code_1(call: Callable[..., Answer], with_gpu: Callable[..., None]) -> None:
    """The others run all the same; --json alone prints what the file would have."""
    with_gpu(Check("one", "it holds", fail), Check("two", "it holds", run))
    code, out, err = call("doctor", "--gpu", "--json")
    assert code == 1
    assert [one["status"] for one in json.loads(out)["checks"]] == ["failed", "ok"]
    assert "failed one" in err


def test_a_file_that_cannot_be_written_is_refused(
    call: Callable[..., Answer], with_gpu: Callable[..., None], tmp_path: Path
) -> None:
    """Before anything runs."""
    with_gpu(Check("one", "it holds", fail))
    (tmp_path / "folder").write_text("a file")
    code, _, err = call("doctor", "--gpu", "--json", tmp_path / "folder" / "report.json")
    assert code == 2
    assert "report.json: cannot be written" in err
    assert "failed" not in err
