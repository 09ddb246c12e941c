"""SGLang as it is installed, which is the one wheel there is: parsed, so that what only GPUs import is seen too."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sglang")

import sglang
from contracts import check
from contracts.sources import Sources
from contracts.table import RELIANCES
from contracts.uses import ROOT, PythonFile, hooks_of

OWN = RELIANCES["sglang"]
INSTALLED = Sources(Path(str(sglang.__file__)).parents[1])


def test_every_hook_fits() -> None:
    """PEO's too, whose modules no CPU server loads."""
    rows, _ = hooks_of("sglang")
    assert len(rows) >= 22
    assert check.hooks(INSTALLED, rows) == []


def test_every_import_and_call_fits() -> None:
    assert check.imports(INSTALLED, OWN.files(), ("sglang",)) == []


def test_every_attribute_is_there() -> None:
    assert check.reads(INSTALLED, OWN.files(), OWN.table) == []


@pytest.mark.parametrize("call", ["low_latency_dispatch", "low_latency_combine"])
def test_a_patched_buffer_takes_what_sglang_passes(call: str) -> None:
    """It names the arguments of its own fork only where it dispatches NVFP4 or overlaps a single batch."""
    file = INSTALLED.roots[0] / "sglang/srt/layers/moe/token_dispatcher/deepep.py"
    reference, target = Sources(ROOT / "scripts"), f"deep_ep_cpu.reference:PatchedBuffer.{call}"
    assert check.calls(reference, target, [PythonFile(file)]) == []
