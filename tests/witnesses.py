"""What the witness in a server's workers wrote down; see vllm/faults/eplb_witness.py."""

from __future__ import annotations

from pathlib import Path


def look_at(folder: Path, ranks: int) -> int:
    """-> steps on which a map changed. Every rank's weights fitted its maps, and all ranks' maps were the same."""
    written = [(folder / f"rank{rank}").read_text().splitlines() for rank in range(ranks)]
    common = min(len(lines) for lines in written)  # the server may be writing
    for rank, lines in enumerate(written):
        wrong = [line for line in lines if not line.endswith(" right")]
        assert wrong == [], f"rank {rank}"
        assert lines[:common] == written[0][:common], f"rank {rank} was on other maps than rank 0"
    return common
