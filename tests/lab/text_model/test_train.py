"""A short training learns, and what it leaves is a stock checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.text_model import corpus, store
from lab.text_model.tokens import encode
from lab.text_model.train import Recipe, new_model, train

SMALL = Recipe(
    layers=2, experts=8, top_k=2, hidden=64, intermediate=32, vocabulary=512, sequence=64, batch=8, steps=20,
    learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {
        held_out: {kind: texts[:4] for kind, texts in corpus.kinds(held_out=held_out).items()}
        for held_out in (False, True)
    }
    monkeypatch.setattr(corpus, "kinds", lambda *, held_out=False: sides[held_out])


@pytest.mark.usefixtures("little_text")
def test_twenty_steps_learn_and_load_anywhere(tmp_path: Path) -> None:
    """Held-out loss falls; transformers loads the folder and gives the trained model's logits."""
    folder = tmp_path / "model"
    card = store.make(SMALL, folder, lambda _text: None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = encode(corpus.kinds(held_out=True), tokenizer)
    before = store.routing.figures(new_model(SMALL), held_out)["held_out_loss"]
    assert card["steps"] == 20
    assert card == json.loads((folder / store.CARD).read_text())
    for kind, loss in card["figures"]["held_out_loss"].items():
        assert loss < before[kind] - 0.3

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    again = new_model(SMALL)
    train(again, encode(corpus.kinds(), tokenizer), SMALL, lambda _text: None)
    prompt = held_out["prose"][None, :64]
    with torch.no_grad():
        # trained a second time, from the same recipe: the same weights
        torch.testing.assert_close(loaded(prompt).logits, again(prompt).logits, rtol=1e-4, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("little_text")
def test_a_recipe_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another recipe has another folder; a training that ends half-way leaves nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = store.model_folder(replace(SMALL, steps=1), lambda _text: None)
    card = (folder / store.CARD).stat()
    assert store.model_folder(replace(SMALL, steps=1), lambda _text: None) == folder
    assert (folder / store.CARD).stat() == card
    assert store.kept_folder(SMALL) != folder

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.routing, "figures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.model_folder(SMALL, lambda _text: None)
    assert list(tmp_path.glob("**/.*")) == []
    assert not store.kept_folder(SMALL).exists()


@pytest.mark.usefixtures("little_text")
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Training again leaves nothing of what lay there."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale").touch()
    store.make(replace(SMALL, steps=1), folder, lambda _text: None)
    assert not (folder / "stale").exists()
    assert (folder / "model.safetensors").exists()
