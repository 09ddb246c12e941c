"""The Grafana dashboard asks for metrics that exist, and leaves none out."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client import start_http_server

from eplb_plugin.bench.ports import free_port
from eplb_plugin.observe.metrics import NAMES, metrics
from eplb_plugin.runtime.outcome import Assessment, Outcome, Served
from eplb_plugin.runtime.stage_timer import Stage

DASHBOARD: dict[str, Any] = json.loads(files("eplb_plugin.observe").joinpath("dashboards", "grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
PROMETHEUS = shutil.which("prometheus")


def test_every_metric_is_asked_for_and_exists() -> None:
    """The names in all expressions are those that servers show, no more and no fewer."""
    assert {name for text in EXPRESSIONS for name in re.findall(r"eplb_plugin_\w+", text)} == NAMES


def test_panels_are_whole() -> None:
    """Each has a title, says what it shows, filters by model, and lies beside the others, not on them."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert all('{model=~"$model"}' in target["expr"] for target in panel["targets"])
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # fmt: skip
        assert not cells & taken
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(text.count("(") == text.count(")") for text in EXPRESSIONS)


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus is installed (apt-get install prometheus)")
def test_a_real_prometheus_answers_every_query(tmp_path: Path) -> None:
    """It scrapes what the plugin's metrics show, and every query of the dashboard returns a number for the model."""
    model, planned = "org/model-1", Assessment((0.7, 0.9), (2.5, 1.5), (0.8, 0.6), 12, 48, 0, 0.25, 1000)
    served = Served(np.array([[8.0, 0.0]]), np.array([3], np.int32), True, 0.25, {"tables": 0.5})
    seconds: dict[Stage, float] = {"snapshot": 0.1, "plan": 0.25}
    outcome = Outcome(model, "accepted", planned, served, seconds, 1000)
    metrics()(outcome)
    exporter, _ = start_http_server(0, "127.0.0.1")
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "200ms"},
        "scrape_configs": [{"job_name": "m", "static_configs": [{"targets": [f"127.0.0.1:{exporter.server_port}"]}]}],
    }))  # fmt: skip
    words = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    process = subprocess.Popen(
        [str(PROMETHEUS), *words, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    )
    try:
        missing = {text: text.replace("$model", model).replace("$__rate_interval", "10s") for text in EXPRESSIONS}
        end = time.monotonic() + 30.0
        while missing:
            metrics()(outcome)  # counters must grow between two scrapes
            missing = {text: query for text, query in missing.items() if not _has_numbers(port, query)}
            assert time.monotonic() < end, f"no number for {sorted(missing)}"
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
        exporter.shutdown()
        exporter.server_close()


def _has_numbers(port: int, query: str) -> bool:
    url = f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': query})}"
    try:
        with urlopen(url, timeout=5.0) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:  # it has not started yet, or the query is wrong
        return False
    return bool(found) and all(math.isfinite(float(one["value"][1])) for one in found)
