"""Charts as data: what plotly takes, nothing that ends its element, and the same values in a table."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin.observe.report.charts import Bar, axis, bars, chart, label, rounded
from report_pages import Text, charts


def test_a_chart_cannot_end_its_element() -> None:
    """Names from outside are data for the browser, and text for a screen reader."""
    html = chart('</script> "x"', [{"type": "bar", "name": "</script><b>"}], {}, "<p>1</p>")
    assert html.count("</script>") == 1
    assert 'aria-label="&lt;/script&gt; &quot;x&quot;"' in html
    assert charts(html)[0]["data"][0]["name"] == "</script><b>"
    assert "Values1" in Text(html).text


def test_labels_wrap_and_are_no_tags() -> None:
    """In as few lines as fit, of like length."""
    made = label("a placement with a long name <b>")
    assert made.split("<br>") == ["a placement with", "a long name &lt;b&gt;"]
    assert label("") == " "
    assert axis("copies to other nodes per token")["title"]["text"] == "copies to other<br>nodes per token"


def test_numbers_are_short() -> None:
    """Four digits of the largest; nothing is lost where all are small."""
    assert rounded(np.array([[1.23456, 0.5], [0.0, 2.0]])) == [[1.235, 0.5], [0.0, 2.0]]
    assert rounded(np.array([0.000123456])) == [0.0001235]
    assert rounded(np.array([123456.7]), 3) == [123457.0]
    assert rounded(np.zeros(2)) == [0.0, 0.0]


def test_bars_show_their_spread() -> None:
    """From the value to either end; the axis begins at zero; the table has what is drawn."""
    html = bars("c", "ms", {"8": [Bar("a", 2.0, 1.5, 3.0), Bar("b", 4.0, 4.0, 4.5)], "9": [Bar("a", 1.0, 1.0, 1.0)]})
    (made,) = charts(html)
    first, second = made["data"]
    assert (first["y"], first["x"]) == (["8", "9"], [2.0, 1.0])
    assert (first["error_x"]["array"], first["error_x"]["arrayminus"]) == ([1.0, 0.0], [0.5, 0.0])
    assert second["name"] == "b"
    assert made["layout"]["xaxis"]["rangemode"] == "tozero"
    assert made["layout"]["xaxis"]["title"]["text"] == "ms"
    assert "8: a21.53" in Text(html).text


def test_one_group_needs_no_legend() -> None:
    """Then names stand at the bars, and a figure without spread has no line."""
    (made,) = charts(bars("c", "share", {"": [Bar("a", 0.5), Bar("b", 0.7)]}, 1.0))
    assert [trace["y"] for trace in made["data"]] == [["a"], ["b"]]
    assert not any(trace["showlegend"] or trace["error_x"]["visible"] for trace in made["data"])
    assert made["layout"]["xaxis"]["range"] == [0, 1.0]


def test_plotly_takes_them() -> None:
    """plotly's own classes know every name in them."""
    graphs = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed: pip install plotly")
    (made,) = charts(bars("c", "ms", {"8": [Bar("a", 2.0, 1.5, 3.0)], "9": [Bar("a", 1.0)]}))
    graphs.Figure(made)
    made["data"][0]["colour"] = "red"
    with pytest.raises(ValueError, match="colour"):
        graphs.Figure(made)
