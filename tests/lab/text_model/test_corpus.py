"""Text of several kinds, divided once and for all."""

from __future__ import annotations

import pytest

from lab.text_model import corpus


def test_no_document_is_both_learned_and_held_out() -> None:
    """Of no kind, nor as a document of another kind, nor under other blanks or case."""
    marks = [{corpus.fingerprint(text) for texts in side.values() for text in texts} for side in _sides()]
    assert not marks[0] & marks[1]


def test_every_kind_has_text_on_both_sides() -> None:
    """Enough to learn from, and enough for prompts."""
    learned, held_out = _sides()
    assert set(learned) == set(held_out) >= {"programs", "prose", "licences", "tables"}
    for kind, texts in held_out.items():
        assert 10_000 < sum(map(len, texts)) < sum(map(len, learned[kind]))


def test_the_side_is_decided_by_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is installed: a text stays on its side, and its copies too."""
    texts = [f"{number} " + "some words of a document " * 20 for number in range(200)]
    one, other = ({"k": lambda: texts[:150]}, {"k": lambda: [text.upper() + "\n" for text in texts]})
    for found in (one, other):
        monkeypatch.setattr(corpus, "_KINDS", found)
        corpus.kinds.cache_clear()
        found["marks"] = [{corpus.fingerprint(text) for text in side["k"]} for side in _sides()]
    corpus.kinds.cache_clear()
    for few, many in zip(one["marks"], other["marks"], strict=True):
        assert few < many
    assert 10 < len(other["marks"][1]) < 60


def _sides() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    return corpus.kinds(), corpus.kinds(held_out=True)
