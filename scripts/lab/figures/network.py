"""docs/network.svg: how arms of `scripts/serve_bench --network` differ from the first, with intervals."""

from __future__ import annotations

import sys
from pathlib import Path

from eplb_plugin.errors import PluginError
from eplb_plugin.observe.paired import PairedCell
from eplb_plugin.observe.paired_file import read_paired

from .svg import page, text

ROOT = Path(__file__).resolve().parents[3]
SOURCE, TARGET = ROOT / "out" / "serve_bench" / "results.json", ROOT / "docs" / "network.svg"
COLOURS = ("#e8590c", "#1c7ed6", "#2f9e44", "#9c36b5", "#868e96")
FIGURES = {
    "bytes_per_output_token": "bytes across nodes per output token",
    "busiest_link_bytes_per_output_token": "of them on the busiest link",
    "copies_per_token": "cross-node copies per token",
    "balancedness": "balancedness",
    "output_tokens_per_second": "output tokens per second",
    "ttft_p50_ms": "TTFT P50",
    "tpot_p90_ms": "TPOT P90",
    "itl_p95_ms": "ITL P95",
    "itl_p99_ms": "ITL P99",
}
LABELS, WIDTH, GAP, LINE, HEAD, TITLE, FOOT = 240, 300, 70, 14, 26, 24, 30
NAME = 200  # of an arm, in the legend
COLUMNS = 2  # panels beside each other: more are too small to read where pages are narrow


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    try:
        compared = read_paired(source).compare()
    except PluginError as error:
        sys.exit(f"scripts/draw_network: {error}")
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else TARGET
    target.write_text(drawn(compared.cells, compared.reference))
    print(f"wrote {target}")


def drawn(cells: list[PairedCell], reference: str) -> str:
    """An SVG: a panel for every condition, in it a group of lines for every figure, a line for every arm."""
    shown = [cell for cell in cells if cell.figure in FIGURES and cell.change is not None]
    arms = list(dict.fromkeys(cell.arm for cell in shown))
    conditions = list(dict.fromkeys(cell.condition for cell in shown))
    bounds = [abs(bound) for cell in shown for bound in (cell.change, cell.low, cell.high) if bound is not None]
    most = max(bounds, default=0.1)
    group = LINE * len(arms) + 10
    line = TITLE + group * len(FIGURES) + FOOT
    width = LABELS + min(len(conditions), COLUMNS) * (WIDTH + GAP)
    beside = width // NAME  # names in a line of the legend
    head = HEAD + 18 * -(-len(arms) // beside)
    parts = [text(10, 20, f"Change against {reference}, 95 % intervals", size=14)]
    for number, arm in enumerate(arms):
        down, across = divmod(number, beside)
        parts.append(text(10 + NAME * across, 40 + 18 * down, f"● {arm}", COLOURS[number % len(COLOURS)]))
    for place, condition in enumerate(conditions):
        top, left = head + place // COLUMNS * line + TITLE, LABELS + place % COLUMNS * (WIDTH + GAP)
        parts.append(text(left, top - 6, condition))
        parts += _panel([cell for cell in shown if cell.condition == condition], arms, left, top, most, group)
        if left == LABELS:
            names = enumerate(FIGURES.values())
            parts += [text(10, top + group * row + LINE + 2, label) for row, label in names]
    height = head + -(-len(conditions) // COLUMNS) * line
    return page(width, height, "".join(parts))


def _panel(cells: list[PairedCell], arms: list[str], left: int, top: int, most: float, group: int) -> list[str]:
    def across(change: float) -> float:
        return left + WIDTH / 2 * (1 + change / most)

    bottom = top + group * len(FIGURES)
    parts = [
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{bottom - top}" fill="none" stroke="#ccc"/>',
        f'<line x1="{across(0)}" x2="{across(0)}" y1="{top}" y2="{bottom}" stroke="#999"/>',
        text(left, bottom + 16, f"{-most:+.0%}", "#555"),
        text(left + WIDTH - 30, bottom + 16, f"{most:+.0%}", "#555"),
    ]
    for cell in cells:
        assert cell.change is not None
        row, turn = list(FIGURES).index(cell.figure), arms.index(cell.arm)
        colour, height = COLOURS[turn % len(COLOURS)], top + group * row + LINE * turn + LINE - 2
        if cell.low is not None and cell.high is not None:
            parts.append(
                f'<line x1="{across(cell.low):.1f}" x2="{across(cell.high):.1f}" y1="{height}" y2="{height}" '
                f'stroke="{colour}" stroke-width="2"/>'
            )
        decided = cell.verdict in ("better", "worse")  # filled: told apart from the reference
        fill = colour if decided else "white"
        parts.append(f'<circle cx="{across(cell.change):.1f}" cy="{height}" r="4" fill="{fill}" stroke="{colour}"/>')
        parts.append(text(left + WIDTH + 6, height + 4, f"{cell.change:+.1%}", colour))
    return parts


if __name__ == "__main__":
    main()
