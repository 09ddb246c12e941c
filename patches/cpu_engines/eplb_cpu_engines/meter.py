"""The routing meter: who computes how much, and how many tokens cross nodes, counted the same way in every arm.

It sees the final physical expert ids of each token, whatever chose them, and knows nothing of balancers.
Each rank writes one JSON line per window to `rank<R>.jsonl`; `read_meter` sums the ranks up. One folder per server run.
"""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Seat:
    """The place of one rank among those that share the experts."""

    rank: int
    num_ranks: int
    num_nodes: int  # the ranks are divided into nodes in order
    slots_per_rank: int

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or self.num_ranks % self.num_nodes:
            raise ValueError(
                f"found {self.num_nodes} nodes for {self.num_ranks} ranks, expected a divisor: change EPLB_METER_NODES"
            )


@dataclass
class _Layer:
    """One layer's counts in the current window."""

    selections: np.ndarray  # [ranks] int64
    owners: int  # ranks that route the same token as this one, itself included
    tokens: int = 0
    copies: int = 0


@dataclass
class Meter:
    """Counts on one rank. A window is `window` engine steps: ranks that step together agree on their windows."""

    folder: Path
    seat: Seat
    window: int = 32
    slots_moved: int = 0  # in the current window: slots whose rank received an expert that it did not hold
    rebalances: int = 0  # in the current window: rebalances begun
    _steps: int = 0
    _layers: dict[str, _Layer] = field(default_factory=dict)

    @staticmethod
    def wanted() -> bool:
        return "EPLB_METER_DIR" in os.environ

    @classmethod
    def from_environment(cls, rank: int, num_ranks: int, experts: int) -> "Meter":
        """The meter of one rank, set up by the EPLB_METER_* variables; experts: physical ones of a layer."""
        if experts % num_ranks:
            raise ValueError(
                f"found {experts} experts on {num_ranks} ranks, expected a multiple: change the number of redundant "
                "experts, or unset EPLB_METER_DIR"
            )
        folder = Path(os.environ["EPLB_METER_DIR"])
        folder.mkdir(parents=True, exist_ok=True)
        seat = Seat(rank, num_ranks, int(os.environ.get("EPLB_METER_NODES", num_ranks)), experts // num_ranks)
        return cls(folder, seat, int(os.environ.get("EPLB_METER_WINDOW", 32)))

    def record(self, layer: str, physical_ids: np.ndarray, owners: int) -> None:
        """physical_ids: [tokens, k] of the real tokens, without padding; -1 = none.

        A copy is a node other than this rank's own that computes for the token, with however many of its experts.
        """
        seat = self.seat
        counts = self._layers.setdefault(layer, _Layer(np.zeros(seat.num_ranks, np.int64), owners))
        rank = np.where(physical_ids >= 0, physical_ids // seat.slots_per_rank, seat.num_ranks)  # one more for "none"
        counts.selections += np.bincount(rank.ravel(), minlength=seat.num_ranks + 1)[:-1]
        ranks_per_node = seat.num_ranks // seat.num_nodes
        visited = np.zeros((len(rank), seat.num_nodes + 1), bool)
        np.put_along_axis(visited, rank // ranks_per_node, True, axis=1)
        visited[:, [seat.rank // ranks_per_node, -1]] = False
        counts.tokens += len(rank)
        counts.copies += int(visited.sum())

    def moved(self, old: np.ndarray, new: np.ndarray) -> None:
        """old, new: [L, slots] logical expert of every slot, before and after a step."""
        shape = (len(old), self.seat.num_ranks, self.seat.slots_per_rank)
        for before, after in zip(old.reshape(shape), new.reshape(shape), strict=True):
            for held, holds in zip(before, after, strict=True):
                self.slots_moved += (Counter(holds.tolist()) - Counter(held.tolist())).total()

    def forget(self) -> None:
        """Drop what the unfinished window has counted."""
        self._layers = {}
        self.slots_moved = self.rebalances = 0

    def end_step(self) -> None:
        """Call once per engine step, whether this rank had tokens or not; the window's last step writes its line."""
        self._steps += 1
        if self._steps % self.window:
            return
        seat, layers = self.seat, self._layers
        line = {
            "window": self._steps // self.window - 1,
            "rank": seat.rank,
            "slots_moved": self.slots_moved,
            "rebalances": self.rebalances,
            "num_ranks": seat.num_ranks,
            "layers": list(layers),
            "owners": [counts.owners for counts in layers.values()],
            "tokens": [counts.tokens for counts in layers.values()],
            "copies": [counts.copies for counts in layers.values()],
            "selections": [counts.selections.tolist() for counts in layers.values()],
        }
        with (self.folder / f"rank{seat.rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.forget()


def read_meter(folder: str | Path, min_tokens: int = 1) -> dict[str, Any]:
    """What all ranks counted together, for each window that all of them finished and that has `min_tokens` tokens.

    layers: the L layers' names; window: [W] numbers; tokens: [W]; selections: [W, L, ranks];
    balancedness: [W], mean/max over ranks, mean over layers;
    copies_per_token: [W], cross-node copies of a token, mean over layers.
    slots_moved, rebalances: totals over all finished windows, of all MoE models served.
    A token that several ranks route (its owners) is one token, and its copies are the mean over its owners.
    """
    lines = _finished_windows(Path(folder))
    layers = max((line["layers"] for window in lines.values() for line in window), key=len, default=[])
    rows = []
    for window, ranks in sorted(lines.items()):
        tokens = np.zeros(len(layers))
        copies = np.zeros(len(layers))
        selections = np.zeros((len(layers), ranks[0]["num_ranks"]))
        for line in ranks:
            at = [layers.index(name) for name in line["layers"]]
            owners = np.array(line["owners"], float)
            tokens[at] += np.array(line["tokens"]) / owners
            copies[at] += np.array(line["copies"]) / owners
            selections[at] += np.array(line["selections"]).reshape(len(at), line["num_ranks"]) / owners[:, None]
        if len(layers) and tokens.min() >= min_tokens:
            balancedness = (selections.mean(1) / selections.max(1)).mean()
            rows.append((window, tokens[0], selections, balancedness, (copies / tokens).mean()))
    names = ("window", "tokens", "selections", "balancedness", "copies_per_token")
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    totals = {name: sum(ranks[0][name] for ranks in lines.values()) for name in ("slots_moved", "rebalances")}
    return {"layers": layers} | totals | {name: np.array(column) for name, column in zip(names, columns, strict=True)}


def _finished_windows(folder: Path) -> dict[int, list[dict]]:
    """The lines of each window that every rank has written."""
    files = sorted(folder.glob("rank*.jsonl"))
    if not files:
        raise FileNotFoundError(f"found no rank*.jsonl in {folder}, expected one per rank: was EPLB_METER_DIR set?")
    windows: dict[int, list[dict]] = {}
    for file in files:
        # a line without its newline is still being written
        for text in (line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")):
            line = json.loads(text)
            windows.setdefault(line["window"], []).append(line)
    for window, lines in windows.items():
        if len({line["rank"] for line in lines}) < len(lines):
            raise ValueError(
                f"found window {window} of a rank twice in {folder}, expected once: give each server run its own folder"
            )
    return {window: lines for window, lines in windows.items() if len(lines) == lines[0]["num_ranks"]}
