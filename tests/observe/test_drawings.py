"""Pictures of the report: colours by value, files that a browser can read, names escaped."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np

from eplb_plugin.observe.drawings import LINES, diverging, lines, matrix, sequential


def test_colours() -> None:
    """1 is white, the most is red, 0 is blue; a picture without any load is white."""
    colours = diverging(np.array([[1.0, 2.0, 0.0, 9.0]]), 2.0)[0].tolist()
    assert colours == [[255, 255, 255], [178, 24, 43], [33, 102, 172], [178, 24, 43]]
    assert sequential(np.zeros((1, 1))).tolist() == [[[255, 255, 255]]]
    assert "&lt;" in matrix(diverging(np.ones((1, 1)), 2.0), "<")
    assert lines({"a": [0.5]}, "flat").count("<polyline") == 1


def test_a_matrix_is_a_picture_of_its_colours() -> None:
    """Decoded by hand: size, checksums, one row of cells after the other; squares lie on the diagonal."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    svg = matrix(colours, "label", values="id", squares=[(1, 3)], stretch=True)
    data = base64.b64decode(re.search(r"base64,([^\"]+)", svg).group(1))  # type: ignore[union-attr]
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(data):
        (size,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size]) == (zlib.crc32(kind + body),)
        chunks[kind], place = body, place + 12 + size
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (5, 3, 8, 2, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(3, 16)
    assert not rows[:, 0].any()
    assert np.array_equal(rows[:, 1:].reshape(3, 5, 3), colours)
    assert '<rect x="1" y="1" width="2" height="2"' in svg
    assert svg.count('preserveAspectRatio="none"') == 2
    assert 'data-values="id"' in svg


def test_lines_span_the_values() -> None:
    """Each with a colour and its escaped name; the largest value is at the top, and points are equally far apart."""
    svg = lines({"<a>": [0.0, 1.0, 0.5], "b": [1.0, 1.0, 0.0]}, "l")
    one, other = (
        [tuple(map(float, p.split(","))) for p in points.split()] for points in re.findall('points="(.*?)"', svg)
    )
    assert one[1][1] == other[0][1] == other[1][1] < one[2][1] < one[0][1] == other[2][1]
    assert one[1][0] - one[0][0] == one[2][0] - one[1][0] > 0
    assert "&lt;a&gt;" in svg
    assert LINES[0] in svg
    assert LINES[1] in svg
