"""All checks of one device, one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from eplb_plugin import PluginError
from eplb_plugin.doctor import single
from eplb_plugin.doctor.checks import Check
from eplb_plugin.doctor.site import Site


def failing(site: Site) -> dict[str, int]:
    raise RuntimeError("broken")


def test_a_check_that_fails_ends_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They run in a group of one rank, which is gone afterwards; the file has them all."""
    seen: list[int] = []
    fine = Check[Site]("second", "it holds", lambda site: {"ranks": seen.append(dist.get_world_size()) or seen[0]})
    report = single.examine(Site(torch.device("cpu")), tmp_path / "r.json", [Check("first", "no", failing), fine])
    assert [(one.name, one.status) for one in report.results] == [("first", "failed"), ("second", "ok")]
    assert seen == [1]
    assert not dist.is_initialized()
    assert [one["name"] for one in json.loads((tmp_path / "r.json").read_text())["checks"]] == ["first", "second"]
    assert "… first (2 to go)" in capsys.readouterr().err


def test_names_are_told_apart() -> None:
    """The one that may leave a device that answers no more is last."""
    names = [check.name for check in single.CHECKS]
    assert len(set(names)) == len(names)
    assert names[-1] == "captures"


def test_fewer_gpus_than_needed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was found."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    single.refuse_no_gpu(2)
    with pytest.raises(PluginError, match=r"doctor: found 2 GPUs \(torch .*\), expected at least 3"):
        single.refuse_no_gpu(3)
