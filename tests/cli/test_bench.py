"""`eplb-plugin bench`: its words reach the benchmark whole, and what it refuses ends as in every command."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Answer = tuple[int, str, str]


def test_words_are_passed_on_as_they_are(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Options with and without values, and what comes after `--`."""
    words = ["--arms", "none,vanilla", "--runs=2", "--url", "a=http://h", "--", "--tp-size", "8", "-x"]
    given: list[str] = []
    monkeypatch.setattr("eplb_plugin.bench.run.main", lambda found: given.extend(found) or 7)
    assert call("bench", *words)[0] == 7
    assert given == words


def test_help_is_the_benchmarks_own(call: Callable[..., Answer]) -> None:
    code, out, _ = call("bench", "--help")
    assert code == 0
    assert "--redundant-experts" in out
    assert "--cpu" not in out  # of the test bed, which is not installed


def test_a_refusal_is_one_line(call: Callable[..., Answer]) -> None:
    code, out, err = call("bench", "--model", "m")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("eplb-plugin bench: --redundant-experts: found nothing")
