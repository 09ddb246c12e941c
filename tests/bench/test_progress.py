"""What a long command says: at once what is done, now and then what runs."""

from __future__ import annotations

import pytest

from eplb_plugin.bench.progress import Progress


def test_what_runs_is_said_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress()
    progress.say("begun")
    report = progress.running("measuring")
    for second in range(1, 31):
        clock[0] = float(second)
        report(f"{second} s")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["0 s  begun", "10 s  measuring: 10 s", "20 s  measuring: 20 s", "30 s  measuring: 30 s"]
