"""The mapping of logical to physical experts against a slow reference of vLLM's GPU kernel."""

import numpy as np
import torch
from eplb_cpu_engines.vllm.routing import map_to_physical_and_record
from hypothesis import given
from hypothesis import strategies as st


def reference(topk_ids, load, log2phy, replica_count, enabled, num_unpadded):
    """One id at a time, as the kernel's comments say."""
    physical, load = np.full_like(topk_ids, -1), load.copy()
    for token, ids in enumerate(topk_ids):
        for k, logical in enumerate(ids):
            if 0 <= logical < len(replica_count):
                replica = ((token * 2654435769) & 0xFFFFFFFF) % max(1, replica_count[logical])
                physical[token, k] = log2phy[logical, replica]
            if enabled and physical[token, k] >= 0 and (num_unpadded is None or token < num_unpadded):
                load[physical[token, k]] += 1
    return physical, load


@given(seed=st.integers(0, 2**32 - 1), enabled=st.booleans(), padding=st.sampled_from([None, 0, 3, 100]))
def test_as_the_gpu_kernel(seed, enabled, padding):
    random = np.random.default_rng(seed)
    tokens, k, logical, physical = random.integers(0, 40), random.integers(1, 5), 6, 9
    replica_count = random.integers(1, 4, logical)
    log2phy = np.full((logical, 5), -1)
    for expert, count in enumerate(replica_count):
        log2phy[expert, :count] = random.choice(physical, count, replace=False)
    topk_ids = random.integers(-1, logical, (tokens, k)).astype(np.int32)
    load = random.integers(0, 100, physical).astype(np.int32)

    view = torch.from_numpy(load.copy())
    result = map_to_physical_and_record(
        torch.from_numpy(topk_ids),
        view,
        torch.from_numpy(log2phy),
        torch.from_numpy(replica_count),
        torch.tensor(enabled),
        None if padding is None else torch.tensor(padding, dtype=torch.int32),
    )
    expected, expected_load = reference(topk_ids, load, log2phy, replica_count, enabled, padding)
    assert result.dtype == torch.int32
    np.testing.assert_array_equal(result.numpy(), expected)
    np.testing.assert_array_equal(view.numpy(), expected_load)
