"""Which rows a rank routes under sequence parallelism."""

import pytest
import torch
from eplb_cpu_engines.vllm.metering import own_chunk


@pytest.mark.parametrize("tokens", [1, 2, 7, 8])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_chunks_are_equal_and_hold_each_real_token_once(tokens, ranks):
    is_padding = torch.arange(tokens) >= tokens - 1  # the last token of the batch is padding
    chunks = [own_chunk(is_padding, rank, ranks) for rank in range(ranks)]
    assert {len(chunk) for chunk in chunks} == {-(-tokens // ranks)}
    together = torch.cat(chunks)
    assert torch.equal(together[:tokens], is_padding)
    assert together[tokens:].all()
