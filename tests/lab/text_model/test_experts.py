"""Training's way through the experts gives what transformers' own gives."""

from __future__ import annotations

import torch

from lab.text_model import experts
from lab.text_model.train import Recipe, new_model

SMALL = Recipe(layers=1, experts=8, top_k=2, hidden=64, intermediate=16, vocabulary=64)


def test_loss_and_gradients_equal_the_eager_ones() -> None:
    """Of every weight, experts that no token chose among them."""
    batch = torch.arange(12).reshape(1, 12) % 3  # few tokens: some experts are chosen by none
    found = {}
    for way in ("eager", experts.NAME):
        model = new_model(SMALL)
        model.set_experts_implementation(way)
        loss = model(batch, labels=batch).loss
        loss.backward()
        found[way] = loss.detach(), {name: one.grad for name, one in model.named_parameters()}
    torch.testing.assert_close(found["eager"][0], found[experts.NAME][0])
    unused = 0
    for name, gradient in found["eager"][1].items():
        torch.testing.assert_close(gradient, found[experts.NAME][1][name], rtol=1e-4, atol=1e-6)
        unused += int((gradient.flatten(1) == 0).all(1).sum()) if "gate_up_proj" in name else 0
    assert unused > 0
