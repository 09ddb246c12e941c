"""What `watch` reads from a server: every metric of the plugin, by model; other text is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import generate_latest

from eplb_plugin import PluginError
from eplb_plugin.observe.metrics import metrics
from eplb_plugin.observe.watching import READINGS, Course, Reading, readings
from eplb_plugin.runtime.outcome import Assessment, Outcome, Served

PLANNED = Assessment((0.7, 0.9), (2.5, 1.5), (0.8, 0.6), 12, 48, 1, 0.25, 1000)


@pytest.fixture(scope="module")
def text() -> str:
    """As a server shows it after an accepted, a refused and a stalled rebalance of one model, and one of another."""
    served = Served(np.array([[8.0, 0.0], [4.0, 4.0]]), np.array([3, 5], np.int32), False, 0.25, {"tables": 0.5})
    show = metrics()
    show(Outcome("watched/a", "accepted", PLANNED, served, seconds={"plan": 0.5}, expert_bytes=1000))
    show(Outcome("watched/a", "accepted", PLANNED, None, seconds={"plan": 1.5}, expert_bytes=1000))
    show(Outcome("watched/a", "refused", None))
    show(Outcome("watched/a", "accepted", PLANNED, None, change="re-split"))
    show(Outcome("watched/a", "stalled"))
    show(Outcome("watched/b", "skipped"))
    return generate_latest().decode()


def test_every_figure_of_a_model_is_read(text: str) -> None:
    """Those of the other model are its own; what is not known is None."""
    found = readings(text)
    one, other = found["watched/a"], found["watched/b"]
    assert one.balancedness == (0.5, 0.75, 1.0)
    assert (one.planned_balancedness, one.per_step) == (0.9, {"tables": 0.5})
    assert (one.copies, one.planned_copies, one.crossing) == (2.5, 1.5, 0.8)
    assert (one.rebalances, one.resplits) == ({"accepted": 2, "refused": 1}, {"accepted": 1})
    assert (one.moved_slots, one.moved_bytes) == (36, 24_000.0)  # a re-split of this outcome is counted as moved, too
    assert one.stages == {"plan": 1.0}
    assert one.stalled
    assert one.last_success is not None
    assert other == Reading(rebalances={"skipped": 1})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "/metrics: found nothing of eplb_plugin, expected its metrics; fix: wait for the first window; SGLang"),
        ("# TYPE other gauge\nother 1\n", "/metrics: found nothing of eplb_plugin"),
        ("<html>no metrics</html>", "/metrics: found other text, expected Prometheus's text format; fix: check"),
    ],
)
def test_what_is_not_the_plugins_is_refused(text: str, line: str) -> None:
    with pytest.raises(PluginError, match=line):
        readings(text)


def test_the_course_keeps_the_last_readings() -> None:
    """One block a reading, empty at 0 and full at 1; a model whose balance is not known has none."""
    course = Course()
    for value in (0.0, 0.5, 1.0):
        course.add({"a": Reading(balancedness=(0.0, value, 1.0)), "b": Reading()})
    assert (course.line("a"), course.line("b")) == ("▁▅█", "")
    for _ in range(READINGS):
        course.add({"a": Reading(balancedness=(0.0, 0.25, 1.0))})
    assert course.line("a") == "▃" * READINGS
