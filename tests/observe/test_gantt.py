"""The picture of a simulated layer: every kernel where and when it runs; files that are something else are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.gantt import COLOURS, SimulatedLayer, gantt, read_simulated_layer, simulated_layer
from eplb_plugin.observe.report import Given, report
from eplb_plugin.peo.cost import Traffic, even_shares
from eplb_plugin.peo.presets import HARDWARE, MODELS
from eplb_plugin.peo.schedule import make_schedule
from eplb_plugin.peo.timeline import simulate

SVG = "{http://www.w3.org/2000/svg}"


def layer(title: str = "a <title>") -> SimulatedLayer:
    schedule = make_schedule("overlap-3", num_rounds=2, num_local_experts=8, num_device_sms=132)
    traffic = Traffic(MODELS["deepseek-v3"], even_shares(32, 8), 64)
    return simulated_layer(simulate(schedule, HARDWARE["H800"], traffic), title, 400.0, 1.0)


def test_bars_are_the_spans():
    one = layer()
    drawn = ElementTree.fromstring(gantt([one, one]))
    groups = list(drawn.iter(f"{SVG}g"))
    bars = sorted(one.bars, key=lambda bar: ("main", "comm", "gemm").index(bar.stream))  # row by row
    for group, bar in zip(groups, bars * 2, strict=True):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        assert rect.get("fill") == COLOURS[bar.kind]
    # one scale: widths are proportional to times
    shown = sorted(
        (float(group.find(f"{SVG}rect").get("width")), bar.end_us - bar.start_us)  # type: ignore[union-attr, arg-type]
        for group, bar in zip(groups, bars, strict=False)
    )
    scale = shown[-1][0] / shown[-1][1]
    assert all(width == pytest.approx(max(us * scale, 1.0), abs=0.1) for width, us in shown)
    text = "".join(drawn.itertext())
    assert "model, not measurement" in text
    assert "a <title>" in text
    assert {"main", "comm", "gemm"} <= set(drawn.itertext())


def test_in_the_report_and_back_from_its_file(tmp_path: Path):
    one = layer()
    (tmp_path / "layer.json").write_text(one.model_dump_json())
    again = read_simulated_layer(tmp_path / "layer.json")
    assert again == one
    html = report("PEO", Given(simulated=[again]))
    assert "Per-expert overlap: model, not measurement" in html
    assert html == report("PEO", Given(simulated=[one]))
    assert "Plotly" not in html  # no other chart: no library


def without(key: str) -> Callable[[dict[str, object]], object]:
    return lambda data: data.pop(key)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("bars"), "found bars: Field required"),
        (lambda data: data.update(bars=[]), "found bars: List should have at least 1 item"),
        (lambda data: data.update(total_us=0), "found total_us: "),
        (lambda data: data["bars"][0].update(stream="side"), "found bars.0.stream: "),
        (lambda data: data.update(colour="red"), "found colour: Extra inputs"),
    ],
)
def test_other_files_are_refused(spoil: Callable[[dict[str, object]], object], words: str, tmp_path: Path):
    data = json.loads(layer().model_dump_json())
    spoil(data)
    path = tmp_path / "layer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PluginError, match=re.escape(words)) as error:
        read_simulated_layer(path)
    assert str(path) in str(error.value)
    with pytest.raises(PluginError, match="cannot be read"):
        read_simulated_layer(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(PluginError, match="found the file: Invalid JSON"):
        read_simulated_layer(path)


def test_the_docs_show_what_is_drawn_now():
    """docs/peo.svg and the tables of docs/peo.md are what scripts/draw_peo writes."""
    from lab.figures import schedules

    assert schedules.TARGET.read_text() == schedules.picture()
    assert f"{schedules.BEGIN}{schedules.tables()}{schedules.END}" in schedules.PAGE.read_text()
