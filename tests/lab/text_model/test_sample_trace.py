"""The repository's sample trace: read by the package, small, and as its README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import cli
from lab.text_model import held_out

TRACES = Path(__file__).resolve().parents[3] / "traces"
NUMBER = re.compile(r"\d+\.?\d*")


def test_its_tables_are_those_of_its_files() -> None:
    """Every word of them, and every number to its last place; and the files are small enough to lie in a repository."""
    stated, found = held_out.stated(TRACES / "README.md"), held_out.tables(TRACES)
    assert NUMBER.sub("#", stated) == NUMBER.sub("#", found)
    numbers = [[float(one) for one in NUMBER.findall(text)] for text in (stated, found)]
    np.testing.assert_allclose(*numbers, atol=0.0101)
    assert sum(file.stat().st_size for file in TRACES.glob("*.npz")) < 300_000


def test_it_is_skewed_clustered_and_shifts() -> None:
    """What a benchmark needs of it: some experts are hot, some are used together, and prose uses others."""
    windows = held_out.read(TRACES)
    for window in windows.values():
        assert (window.load.max(1) / window.load.mean(1)).mean() > 1.5
        assert held_out.lift(window).mean() > 1.2
    same, other = (held_out.moved(windows["code-1"], windows[name]).mean() for name in ("code-2", "prose"))
    assert same < other / 2


@pytest.mark.parametrize("name", ["code-1", "code-2", "prose"])
def test_every_token_has_its_kind(name: str) -> None:
    """Of those that the file names, in turn."""
    with np.load(TRACES / f"{name}.npz") as file:
        kinds, of_token, tokens = file["kinds"].tolist(), file["kind_of_token"], file["topk_ids"].shape[1]
    assert kinds == (["prose"] if name == "prose" else ["programs", "headers"])
    assert of_token.tolist() == [at // 256 % len(kinds) for at in range(tokens)]


def test_replay_reads_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the README; on the other half affinity brings fewer copies than vanilla."""
    copies = {}
    cluster = ["--nodes", "4", "--ranks-per-node", "1", "--slots-per-rank", "9"]
    for policy, dispatch in (("affinity", "weighted"), ("deepseek", "hash")):
        how = ["--policy", policy, "--dispatch", dispatch, "--json"]
        monkeypatch.setattr("sys.argv", ["eplb-plugin", "replay", str(TRACES / "code-1.npz"), *cluster, *how])
        with pytest.raises(SystemExit):
            cli.app()
        answer = json.loads(capsys.readouterr().out)
        assert answer["held_out"] is True
        copies[policy] = answer["mean"]["cross_node_copies"]
    assert copies["affinity"] < 0.9 * copies["deepseek"]
