"""Pieces of HTML: cells as given, words escaped."""

from __future__ import annotations

import re

from eplb_plugin.observe.report.markup import coded, folded, note, table


def test_tables() -> None:
    """Cells as given, in rows; a keyboard can scroll a wide one."""
    made = table(["a", "b"], [["1", "<i>2</i>"], ["3", "4"]])
    assert re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", made) == ["a", "b", "1", "<i>2</i>", "3", "4"]
    assert made.count("<tr>") == 3
    assert 'tabindex="0"' in made
    assert '<table class="words">' in table(["a"], [], "words")


def test_words_are_escaped() -> None:
    assert note("a < b") == '<p class="note">a &lt; b</p>'
    assert folded("a < b", "<p>") == "<details><summary>a &lt; b</summary><p></details>"
    assert coded("run `a <b>` & look") == "run <code>a &lt;b&gt;</code> &amp; look"
