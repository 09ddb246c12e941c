"""Which tensors move, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing._internal.two_tensor import TwoTensor

from eplb_plugin import PluginError
from eplb_plugin.migration.layout import expert_rows
from strategies import QUICK

SLOTS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.uint8, torch.int8, torch.float64)


def laid_out(dtype: torch.dtype, shape: tuple[int, ...], how: str) -> torch.Tensor:
    """Random bytes as a tensor [SLOTS, *shape] that lies in memory as `how` says."""

    def empty(*size: int) -> torch.Tensor:
        count = int(torch.tensor(size).prod()) * dtype.itemsize
        return torch.randint(0, 256, (count,), dtype=torch.uint8).view(dtype).view(size)

    if how == "transposed" and len(shape) == 2:
        return empty(SLOTS, shape[1], shape[0]).transpose(1, 2)
    if how == "with room" and shape:
        return empty(SLOTS, 2 * shape[0], *shape[1:])[:, : shape[0]]
    return empty(SLOTS, *shape)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1)]).view(torch.uint8)  # cat: strides of one element may be any


@given(
    st.lists(
        st.tuples(
            st.sampled_from(DTYPES),
            st.lists(st.integers(1, 5), max_size=3).map(tuple),
            st.sampled_from(["plain", "transposed", "with room"]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.permutations(range(SLOTS)),
    st.integers(0, SLOTS),
)
@QUICK
def test_rows_are_read_and_written_bit_for_bit(kinds: list, order: list[int], count: int) -> None:
    """Rows read from some slots and written into others move every tensor, and nothing else of its memory."""
    tensors = {f"t{index}": laid_out(*kind) for index, kind in enumerate(kinds)}
    layout = expert_rows(tensors, SLOTS)
    sources, targets = torch.tensor(order[:count], dtype=torch.int64), torch.arange(count)
    expected = {}
    for name, tensor in tensors.items():
        expected[name] = tensor.clone()
        expected[name][:count] = tensor[sources]
    outside = [tensor.untyped_storage().nbytes() for tensor in tensors.values()]
    rows = torch.zeros(count, layout.row_bytes, dtype=torch.uint8)
    layout.read(sources, rows)
    layout.write(targets, rows)
    for name, tensor in tensors.items():
        assert torch.equal(as_bytes(tensor), as_bytes(expected[name])), name
    assert outside == [tensor.untyped_storage().nbytes() for tensor in tensors.values()]
    assert layout.expert_bytes == sum(tensor[0].numel() * tensor.element_size() for tensor in tensors.values())
    assert layout.row_bytes % 16 == 0


def test_room_between_rows_stays() -> None:
    """Memory between the rows of a tensor is not an expert's."""
    base = torch.arange(32).view(4, 8)
    layout = expert_rows({"w": base[:, :5]}, SLOTS)
    rows = torch.zeros(1, layout.row_bytes, dtype=torch.uint8)
    layout.read(torch.tensor([3]), rows)
    layout.write(torch.tensor([0]), rows)
    assert base[0].tolist() == [24, 25, 26, 27, 28, 5, 6, 7]


def test_what_stays_behind() -> None:
    """Single values, broadcast scales, empty tensors, what the engine names, and a second name of the same memory."""
    weight = torch.zeros(SLOTS, 3)
    tensors = {
        "weight": weight,
        "again": weight,
        "input_scale": torch.ones(1).expand(SLOTS),
        "group_size": torch.tensor(128),
        "one": torch.ones(1),
        "empty": torch.empty(0),
        "e_score_correction_bias": torch.zeros(256),
    }
    layout = expert_rows(tensors, SLOTS, shared={"e_score_correction_bias"})
    assert layout.signature == "weight:torch.float32[3][1]"


REFUSED = {
    "fused_experts": (torch.zeros(2 * SLOTS, 3), r"found \[8, 3\]"),
    "experts_inside": (torch.zeros(3, SLOTS), r"found \[3, 4\]"),
    "interleaved": (torch.zeros(3, SLOTS).transpose(0, 1), r"strides \[1, 4\]"),
    "overlapping": (torch.zeros(10).as_strided((SLOTS, 4), (2, 1)), r"strides \[2, 1\]"),
    "broadcast_inside": (torch.zeros(SLOTS, 1).expand(SLOTS, 3), r"strides \[1, 0\]"),
    "sparse": (torch.zeros(SLOTS, 3).to_sparse(), "sparse"),
    "meta": (torch.zeros(SLOTS, 3, device="meta"), "meta"),
    "wrapper": (TwoTensor(torch.zeros(SLOTS, 3), torch.zeros(SLOTS, 3)), "found TwoTensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_layouts_are_refused_by_name(name: str) -> None:
    """Anything that is not certain to be moved right, or to need no move, is refused before anything is served."""
    tensor, message = REFUSED[name]
    with pytest.raises(PluginError, match=f"^{name}: .*{message}"):
        expert_rows({"weight": torch.zeros(SLOTS, 3), name: tensor}, SLOTS)


def test_a_layer_without_experts_is_refused() -> None:
    """A layer whose tensors are all shared is not what it was taken for."""
    with pytest.raises(PluginError, match="no tensor of experts"):
        expert_rows({"scale": torch.ones(1).expand(SLOTS)}, SLOTS)
