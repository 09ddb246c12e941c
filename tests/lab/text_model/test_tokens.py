"""The tokenizer loses nothing, and whole corpora are encoded as one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lab.text_model import corpus
from lab.text_model.tokens import encode


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Byte-level: also characters that no kind has."""
    ids = tokenizer(text)["input_ids"]
    if not any(mark in text for mark in tokenizer.all_special_tokens):
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_documents_are_encoded_as_one_by_one(tokenizer: PreTrainedTokenizerFast) -> None:
    """The quick way gives what transformers gives, with an end mark after each."""
    kinds = {kind: texts[:3] for kind, texts in corpus.kinds(held_out=True).items()}
    for kind, tokens in encode(kinds, tokenizer).items():
        one_by_one = [token for text in kinds[kind] for token in [*tokenizer(text)["input_ids"], 0]]
        assert tokens.tolist() == one_by_one
