"""The two things that every drawing writes: a white page and words on it."""

from __future__ import annotations

from xml.sax.saxutils import escape


def page(width: float, height: float, body: str, *, left: float = 0) -> str:
    """A whole SVG; left: where the page begins."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:g} 0 {width:g} {height:g}" font-family="sans-serif">'
        f'<rect x="{left:g}" width="{width:g}" height="{height:g}" fill="white"/>{body}</svg>\n'
    )


def text(x: float, y: float, words: str, colour: str = "#333", *, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}">{escape(words)}</text>'
