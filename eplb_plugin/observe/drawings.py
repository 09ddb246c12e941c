"""Pictures for the report: matrices and lines as SVG that needs nothing else. Equal input gives equal bytes."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COOL, WARM = np.array([33, 102, 172]), np.array([178, 24, 43])  # less and more than the mean; told apart by everyone
LINES = ("#555555", "#1b6ca8", "#b2182b", "#2e7d32", "#8e44ad", "#b8860b")


def diverging(values: Floats, most: float) -> NDArray[np.uint8]:
    """[h, w] -> [h, w, 3] colours: 1.0 is white, 0 is `COOL`, `most` and above `WARM`."""
    above = np.clip((values - 1.0) / max(most - 1.0, 1e-9), 0.0, 1.0)[..., None]
    below = np.clip(1.0 - values, 0.0, 1.0)[..., None]
    return np.rint(255.0 + above * (WARM - 255.0) + below * (COOL - 255.0)).clip(0, 255).astype(np.uint8)


def sequential(values: Floats) -> NDArray[np.uint8]:
    """[h, w] >= 0 -> [h, w, 3] colours from white to `COOL`, by the square root, which shows weak values too."""
    share = np.sqrt(values / max(float(values.max(initial=0.0)), 1e-300))[..., None]
    return np.rint(255.0 + share * (COOL - 255.0)).astype(np.uint8)


def matrix(
    colours: NDArray[np.uint8], label: str, *, values: str = "", squares: Sequence[tuple[int, int]] = (),
    stretch: bool = False,
) -> str:  # fmt: skip
    """colours: [h, w, 3] -> an <svg> of h × w cells; values: id of the figures that pointing at a cell shows.

    squares: (first, last + 1) cell of squares drawn on the diagonal; stretch: cells need not be square.
    """
    height, width = colours.shape[:2]
    drawn = "".join(
        f'<rect x="{first}" y="{first}" width="{last - first}" height="{last - first}" class="square"/>'
        for first, last in squares
    )
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    data = f' data-values="{escape(values)}"' if values else ""
    return (
        f'<svg viewBox="0 0 {width} {height}" class="matrix"{ratio}{data} role="img" aria-label="{escape(label)}">'
        f'<image href="data:image/png;base64,{base64.b64encode(_png(colours)).decode()}" width="{width}" '
        f'height="{height}" preserveAspectRatio="none"/>{drawn}</svg>'
    )


def lines(series: Mapping[str, Sequence[float]], label: str) -> str:
    """One line per series over equally spaced points, with its name at the side; the y axis spans the values."""
    values = [value for row in series.values() for value in row]
    low, high = min(values), max(values)
    low, high = low - 0.05 * (high - low or 1.0), high + 0.05 * (high - low or 1.0)
    width, height, left = 640.0, 220.0, 50.0

    def y(value: float) -> float:
        return 10.0 + (height - 20.0) * (high - value) / (high - low)

    parts = [
        f'<text x="{left - 6}" y="{y(value) + 4:.1f}" class="axis" text-anchor="end">{value:.2f}</text>'
        f'<line x1="{left}" x2="{width}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="grid"/>'
        for value in np.linspace(low, high, 5)
    ]
    for number, (name, row) in enumerate(series.items()):
        colour, step = LINES[number % len(LINES)], (width - left) / max(len(row) - 1, 1)
        points = " ".join(f"{left + step * at:.1f},{y(value):.1f}" for at, value in enumerate(row))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = 20 + 16 * number
        parts.append(f'<text x="{width + 8}" y="{at}" fill="{colour}" class="axis">{escape(name)}</text>')
    box = f'viewBox="0 0 860 {height:.0f}" class="lines" role="img" aria-label="{escape(label)}"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def _png(colours: NDArray[np.uint8]) -> bytes:
    height, width = colours.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a leading 0 per row: no filter
    rows[:, 1:] = colours.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
