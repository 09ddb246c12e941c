"""`scripts/check_release`: what differs in another release, before anyone installs it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer import Typer
from typer.testing import CliRunner

pytest.importorskip("vllm")

from contracts import check, release
from contracts.sources import Sources
from contracts.uses import hooks_of
from contracts.wheels import WheelMissing
from eplb_plugin.engines.releases import VLLM

STEP = "vllm.distributed.eplb.eplb_state:EplbState.step"


@pytest.fixture
def tested(wheel: Callable[[str, str], Sources]) -> Sources:
    return wheel("vllm", VLLM.tested[0])


def answer(*words: str) -> tuple[int, str]:
    app = Typer()
    app.command()(release.main)
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def test_a_function_that_changed_inside_is_told_with_its_lines(
    tested: Sources, changed: Callable[..., Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signature fits, so no start refuses it: someone has to read it. Exit code 0."""
    name, old = "vllm/distributed/eplb/eplb_state.py", "if is_profile:\n            self.rearrange(is_profile=True)"
    other = changed(tested, name, old, old.replace("if is_profile", "if is_profile and not is_dummy"))
    monkeypatch.setattr(release, "unpacked", lambda name, version: (version, name))
    monkeypatch.setattr(release, "Sources", lambda key: other if key[0] == "0.99.0" else tested)
    code, out = answer("vllm", "0.99.0", "--diff")
    assert code == 0
    assert "vllm 0.99.0: 0 misfits" in out
    assert f"1 hooked functions differ inside from {VLLM.tested[0]}" in out
    assert f"  {STEP}: 2 lines" in out
    assert "+    if is_profile and (not is_dummy):" in out
    assert "+    if" not in answer("vllm", "0.99.0")[1]


def test_what_does_not_fit_is_exit_code_1(
    tested: Sources, changed: Callable[..., Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that the plugin imports, gone."""
    other = changed(tested, "vllm/utils/gpu_sync_debug.py", "def gpu_sync_allowed(", "def sync_allowed(")
    monkeypatch.setattr(release, "unpacked", lambda name, version: (version, name))
    monkeypatch.setattr(release, "Sources", lambda key: other if key[0] == "0.99.0" else tested)
    code, out = answer("vllm", "0.99.0")
    assert code == 1
    assert "no gpu_sync_allowed in vllm.utils.gpu_sync_debug" in out


def test_a_release_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, version: str) -> None:
        raise WheelMissing(f"pip download {name}==={version}: no such release")

    monkeypatch.setattr(release, "unpacked", missing)
    assert answer("vllm", "9.9.9") == (2, "check_release: pip download vllm===9.9.9: no such release\n")


def test_without_any_of_its_places_a_hook_is_a_misfit(tested: Sources, changed: Callable[..., Sources]) -> None:
    """One place is enough; where all are gone, all are named."""
    rows, elsewhere = hooks_of("vllm")
    assert check.alternatives(tested, elsewhere) == []
    assert check.alternatives(tested, elsewhere[:1])[0].startswith(elsewhere[0].target)
    assert check.alternatives(tested, []) == []
    assert not set(elsewhere) & set(rows)
