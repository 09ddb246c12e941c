"""docs/tradeoff.svg: cross-node copies against balance for every rule, from out/bench_affinity.json; and as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .svg import page, text

ROOT = Path(__file__).resolve().parents[3]
SOURCE, TARGET = ROOT / "out" / "bench_affinity.json", ROOT / "docs" / "tradeoff.svg"
COLOURS = {"hash": "#1c7ed6", "nearest": "#2f9e44", "weighted": "#e8590c", "cover": "#9c36b5"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP, COLUMNS = 330, 300, 60, 60, 60, 40, 3
Row = dict[str, Any]


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    traffics = json.loads(source.read_text())
    for traffic in traffics:
        print(f"\n{traffic['traffic']}, {traffic['layers']} layers\n\n{table(traffic['rows'])}")
    across, down = WIDTH + LEFT + GAP, TOP + HEIGHT + BOTTOM
    panels = "".join(
        f'<g transform="translate({number % COLUMNS * across} {number // COLUMNS * down})">'
        f"{panel(LEFT, traffic['traffic'], traffic['rows'])}</g>"
        for number, traffic in enumerate(traffics)
    )
    width, height = min(len(traffics), COLUMNS) * across, -(-len(traffics) // COLUMNS) * down
    TARGET.write_text(page(width, height, panels))
    print(f"\nwrote {TARGET}")


def curve(rows: list[Row], rule: str) -> list[Row]:
    """The rows of policy affinity at the default ingress tolerance, by balance tolerance."""
    ours = [row for row in rows if row["policy"] == "affinity" and row["rule"] == rule]
    default = ours[0]["ingress_tolerance"]
    return sorted(
        (row for row in ours if row["ingress_tolerance"] == default), key=lambda row: row["balance_tolerance"]
    )


def table(rows: list[Row]) -> str:
    """Markdown; cells: cross-node copies per token (against vanilla), balancedness, ingress, all held out."""
    vanilla, rules = rows[0], [rule for rule in COLOURS if any(row["rule"] == rule for row in rows[1:])]
    tolerances = [row["balance_tolerance"] for row in curve(rows, rules[0])]
    lines = ["| balance tolerance | " + " | ".join(f"{one:g}" for one in tolerances) + " |"]
    lines.append("|---|" + "--:|" * len(tolerances))
    lines.append(f"| vanilla | {cell(vanilla)} |" + " |" * (len(tolerances) - 1))
    for rule in rules:
        cells = (f"{cell(row)} ({-row['fewer_copies']:+.1%})" for row in curve(rows, rule))
        lines.append(f"| `{rule}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: Row) -> str:
    return f"{row['cross_node_copies']:.3f}, {row['balancedness']:.3f}, {row['busiest_ingress']:.2f}"


def panel(left: int, title: str, rows: list[Row]) -> str:
    shown = [rows[0], *(row for rule in COLOURS for row in curve(rows, rule))]
    low = min(row["balancedness"] for row in shown) - 0.01
    span, most = max(row["balancedness"] for row in shown) + 0.01 - low, 1.1 * rows[0]["cross_node_copies"]

    def place(row: Row) -> tuple[float, float]:
        across = (row["balancedness"] - low) / span * WIDTH
        return left + across, TOP + HEIGHT * (1.0 - row["cross_node_copies"] / most)

    parts = [
        text(left, 30, title),
        f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        text(left, TOP + HEIGHT + 38, f"balancedness on the next window: {low:.3f} to {low + span:.3f}", "#555"),
        text(left, TOP - 8, f"cross-node copies per token: 0 to {most:.2f}", "#555"),
        mark(*place(rows[0]), "#333", "vanilla"),
    ]
    for rule, colour in COLOURS.items():
        points = [place(row) for row in curve(rows, rule)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [mark(*point, colour, rule if number == 0 else "") for number, point in enumerate(points)]
    return "".join(parts)


def mark(x: float, y: float, colour: str, label: str) -> str:
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    return circle + (text(x + 7, y - 6, label, colour) if label else "")


if __name__ == "__main__":
    main()
