"""A tokenizer of this machine's text, for all tests of the text model."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from lab.text_model import corpus
from lab.text_model.tokens import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer({kind: texts[:8] for kind, texts in corpus.kinds().items()}, 1024)
