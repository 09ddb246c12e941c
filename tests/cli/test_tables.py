"""Tables of figures fit a terminal of 80 columns, and are whole where the output is no terminal or a narrow one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.cli.tables import show, slim

Answer = tuple[int, str, str]
CLUSTER = ("--nodes", 2, "--ranks-per-node", 2, "--slots-per-rank", 9)


def test_a_table_is_never_narrower_than_its_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cell is cut or folded; title and notes stand in lines of their own."""
    monkeypatch.setenv("COLUMNS", "20")
    table = slim("what", "a figure with a long heading", "other")
    table.add_row("a row with a name of many words", "0.123", "–")
    show("title", table, ["note"])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "title",
        "what                            a figure with a long heading other",
        "─" * 66,
        "a row with a name of many words 0.123                        –",
        "note",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "trace.npz", *CLUSTER, "--out", "p.safetensors"),
        ("replay", "trace.npz", *CLUSTER, "--step-tokens", 100, "--exact", "--per-layer"),
        ("workload", "make", "--layers", 2, "--experts", 256, "--top-k", 6, "--ranks", 16, "--factor", 2),
        ("workload", "fit", "trace.npz", "--ranks", 4),
    ],
)
def test_tables_fit_80_columns(
    call: Callable[..., Answer], files: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    """With every column that they can have."""
    monkeypatch.chdir(files)
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    rule = next(number for number, line in enumerate(lines) if set(line.rstrip()) == {"─"})
    rows = [line for line in lines[rule - 1 :] if line == lines[rule - 1] or "0." in line]
    assert len(rows) > 1
    assert max(len(line.rstrip()) for line in rows) <= 80
    assert "…" not in out
