"""The advice in two sentences: what to do, why, and what a later rebalance costs."""

from __future__ import annotations

import re

from eplb_plugin.observe.advice_file import Advice
from eplb_plugin.observe.report.next_steps import of_advice
from report_pages import BEST, FOUND, Text


def lead(enable: bool = True, **changed: object) -> str:
    given = {"recording": "w", "enable": enable, "best": BEST, "reasons": ["a < b"], "settings": "policy: affinity"}
    html = of_advice(Advice.model_validate({**given, "outcomes": [{**FOUND, **changed}]}))
    assert "a &lt; b" in html
    assert "<pre>policy: affinity</pre>" in html
    found = re.search('class="lead">(.*?)</p>', html)
    assert found is not None
    return Text(found[1]).text


def test_two_sentences() -> None:
    assert lead() == (
        "Enable EPLB with policy affinity, dispatch cover and 4 redundant experts a layer: on the half of the "
        "recording that it was not planned on, the busiest ranks do 12% less work (10% to 14%), and 24% fewer copies "
        "(23% to 25%) go to other nodes. A later rebalance moves 62 of 144 slots; whether that pays, eplb-plugin bench "
        "measures on your servers."
    )


def test_what_is_lost_is_said() -> None:
    """Not enabled; more work instead of less; a rebalance that is repaid after a while, or never."""
    text = lead(False, work_saved=[-0.02, -0.04], copies_saved=None, break_even_tokens=[1000.0, 38000.0])
    assert text.startswith("Do not enable EPLB. With the best that was tried, policy affinity")
    assert "do 3% more work (2% to 4%)." in text
    assert "repaid after 38,000 tokens." in text
    assert "never repaid" in lead(break_even_tokens=[1000.0, None])


def test_nothing_to_choose_from() -> None:
    none = Advice(recording="w", enable=False, best=None, reasons=["no dispatch"], settings=None, outcomes=[])
    assert of_advice(none) == "<p>no dispatch</p>"
