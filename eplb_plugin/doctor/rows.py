"""Check: rows of experts are read, sealed and written on the device as on the host."""

from __future__ import annotations

import torch

from ..migration.checksum import broken, seal
from ..migration.layout import ExpertRows, expert_rows
from .checks import Check, Figures, expect, expect_equal
from .site import Site

# layouts of checkpoints: tensor -> dtype, one expert's shape for a real model and for a test; a name that ends in _T
# lies transposed
LAYOUTS: dict[str, dict[str, tuple[torch.dtype, tuple[int, int], tuple[int, int]]]] = {
    "bf16": {
        "w13": (torch.bfloat16, (4096, 2048), (6, 8)),
        "w2": (torch.bfloat16, (2048, 2048), (5, 3)),
    },
    "block fp8": {
        "w13": (torch.float8_e4m3fn, (4096, 7168), (6, 4099)),  # more words than a block of the seal
        "w2": (torch.float8_e4m3fn, (7168, 2048), (3, 5)),
        "w13_scale_T": (torch.float32, (32, 56), (3, 5)),
        "w2_scale": (torch.float32, (56, 16), (1, 3)),
    },
    "packed int4": {
        "w13_packed": (torch.int32, (1024, 896), (2, 5)),
        "w2_zeros": (torch.uint8, (7168, 8), (3, 1)),
        "w13_scale_T": (torch.bfloat16, (4096, 56), (4, 3)),
    },
}


def check_rows(site: Site) -> Figures:
    """Indices lie on the host, as a transfer gives them; rows on the device, and on the host as gloo has them."""
    figures: Figures = {}
    for name, layout in LAYOUTS.items():
        slots = site.pick(12, 6)
        tensors = {one: random_tensor(slots, *kind, site.full, one.endswith("_T")) for one, kind in layout.items()}
        for where in {site.device, torch.device("cpu")}:
            here = {one: tensor.clone() for one, tensor in tensors.items()}
            there = {one: tensor.to(site.device, copy=True) for one, tensor in tensors.items()}
            _compare(name, expert_rows(there, slots), expert_rows(here, slots), where)
            for one, tensor in here.items():
                expect_equal(f"{name}: {one} after a write from {where.type}", _bytes(there[one]), _bytes(tensor))
        figures[f"row bytes, {name}"] = expert_rows(tensors, slots).row_bytes
    return figures


def random_tensor(
    slots: int, dtype: torch.dtype, shape: tuple[int, int], small: tuple[int, int], full: bool, transposed: bool
) -> torch.Tensor:
    rows, columns = shape if full else small
    made = torch.randint(0, 256, (slots, rows, columns * dtype.itemsize), dtype=torch.uint8).view(dtype)
    return made.transpose(1, 2) if transposed else made


def _compare(name: str, there: ExpertRows, here: ExpertRows, where: torch.device) -> None:
    """Reads, seals and writes the same experts on both; `where`: the memory that the device's rows pass through."""
    order = torch.randperm(here.num_slots)
    read, written, identity = order[:-2], order[1:-1].flip(0), torch.arange(len(order) - 2) + 7
    expected = torch.zeros(len(read), here.row_bytes, dtype=torch.uint8)
    found = expected.to(where, copy=True)
    for rows, into in ((there, found), (here, expected)):
        rows.read(read, into)
        seal(into, identity)
    for offset, matrix in zip(here.offsets, here.matrices, strict=True):
        part = slice(offset, offset + matrix.shape[1] * matrix.element_size())  # what lies between parts is any
        expect_equal(f"{name}: rows read into {where.type} memory", found[:, part], expected[:, part])
    sealed = found.cpu().clone()
    seal(sealed, identity)
    expect_equal(f"{name}: rows sealed in {where.type} memory", found, sealed)
    expect_broken(name, found, identity, [])
    there.write(written, found)
    here.write(written, expected)
    found[1, 3] ^= 1
    expect_broken(name, found, identity, [1])
    expect_broken(name, found, identity.roll(1), list(range(len(read))))


def expect_broken(name: str, rows: torch.Tensor, identity: torch.Tensor, expected: list[int]) -> None:
    found = torch.nonzero(broken(rows, identity)).flatten().tolist()
    expect(f"{name}: rows whose seal does not fit", found == expected, found=found, expected=expected)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    inner = tensor if tensor.is_contiguous() else tensor.transpose(1, 2)
    return inner.cpu().view(torch.uint8)


ROWS = Check(
    "rows",
    "Experts' bytes of every layout are read, sealed, checked and written on the device as on the host",
    check_rows,
)
