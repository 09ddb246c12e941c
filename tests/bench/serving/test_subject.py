"""What is served and asked: the trained model and held-out text, a synthetic model, or a user's own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench.serving import subject
from eplb_plugin.bench.server import ServerError
from lab.text_model import corpus, store
from lab.text_model.tokens import make_tokenizer


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the trained model would be, with a tokenizer and no weights."""
    folder = tmp_path / "kept"
    make_tokenizer({kind: texts[:8] for kind, texts in corpus.kinds().items()}, 1024).save_pretrained(folder)
    monkeypatch.setattr(store, "model_folder", lambda recipe, report: folder)
    monkeypatch.setattr(subject, "REQUESTS", 3)
    return folder


def test_the_trained_model_is_asked_to_go_on_with_text_it_has_not_seen(kept: Path, tmp_path: Path) -> None:
    """A file for each kind of text, which the load generators read."""
    subject.emptied(tmp_path / "out")
    found = subject.prepared(tmp_path / "out", None, [], print)
    assert found.model == kept
    assert [file.stem for file in found.prompts] == list(subject.KINDS)
    for file in found.prompts:
        held_out = "\n\n".join(corpus.kinds(held_out=True)[file.stem])
        entries = json.loads(file.read_text())
        assert len(entries) == 3
        assert all(turn["value"] in held_out for entry in entries for turn in entry["conversations"])


def test_named_models_and_files_are_taken_as_they_are(kept: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text("[]")
    assert subject.checked_model(subject.SYNTHETIC) == "synthetic"
    model = subject.checked_model(str(kept))
    assert subject.prepared(tmp_path, model, [], print) == subject.Subject(kept, ())
    assert subject.prepared(tmp_path, None, [subject.checked_file(str(own))], print) == subject.Subject(kept, (own,))
    for check in (subject.checked_model, subject.checked_file):
        with pytest.raises(argparse.ArgumentTypeError, match="found no"):
            check(str(tmp_path / "elsewhere"))


def test_too_little_text_ends_in_one_line(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "KINDS", ("poems",))
    with pytest.raises(ServerError, match="found poems, expected programs"):
        subject.prepared(tmp_path, None, [], print)


def test_only_an_earlier_runs_folder_is_emptied(tmp_path: Path) -> None:
    """What is somebody's own is left."""
    subject.emptied(tmp_path / "out")
    (tmp_path / "out" / "left.json").touch()
    subject.emptied(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["serve_bench.run"]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    with pytest.raises(ServerError, match="not empty and no earlier run's"):
        subject.emptied(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "thesis.tex").exists()
