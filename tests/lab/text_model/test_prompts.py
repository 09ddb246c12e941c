"""Requests of held-out text, in the lengths and the order asked for."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from eplb_plugin.errors import PluginError
from lab.text_model import corpus
from lab.text_model.prompts import Part, make_requests

PARTS = (Part(("programs", "tables"), 6, (16, 32), (4, 8)), Part(("prose",), 3, (8, 8), (6, 6)))


def test_requests_are_as_the_schedule_says(tokenizer: PreTrainedTokenizerFast) -> None:
    """Kinds in turn and then shifted, lengths in their ranges, text of the held-out side, each once."""
    made = make_requests(PARTS, tokenizer, seed=3)
    assert [one.kind for one in made] == ["programs", "tables"] * 3 + ["prose"] * 3
    held_out = {kind: "\n\n".join(texts) for kind, texts in corpus.kinds(held_out=True).items()}
    for request, part in zip(made, [PARTS[0]] * 6 + [PARTS[1]] * 3, strict=True):
        for text, (least, most) in ((request.prompt, part.prompt_tokens), (request.output, part.output_tokens)):
            assert least <= len(tokenizer(text)["input_ids"]) <= most
        assert request.prompt + request.output in held_out[request.kind]
    assert len({one.prompt for one in made}) == len(made)
    assert made == make_requests(PARTS, tokenizer, seed=3) != make_requests(PARTS, tokenizer, seed=4)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Part(("poems",), 1, (8, 8), (8, 8)), "found poems, expected programs"),
        (Part(("prose",), 1, (8, 1025), (8, 8)), "prompts of at most 1024"),
        (Part(("prose",), 1, (8, 1024), (8, 1025)), "with output 2048"),
        (Part(("prose",), 1, (8, 8), (3, 8)), "at least 4 tokens"),
    ],
)
def test_what_a_client_would_leave_out_is_refused(tokenizer: PreTrainedTokenizerFast, part: Part, reason: str) -> None:
    """In one line, before any request is made."""
    with pytest.raises(PluginError, match=reason):
        make_requests([part], tokenizer)
