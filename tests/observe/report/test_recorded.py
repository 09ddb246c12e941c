"""What was recorded: of every file what it says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eplb_plugin.observe.demo_results import read_demo
from eplb_plugin.observe.report.given import Given
from eplb_plugin.observe.report.recorded import of_recorded
from report_pages import Text


def test_files_say_what_they_are(given: Given, demo_file: Path) -> None:
    headers = {"window 1": {"kind": "statistics", "version": 1, "model": "<m>", "engine": "vllm"}}
    text = Text(of_recorded(replace(given, headers=headers, demo=read_demo(demo_file)))).text
    window = "500 tokens; 3 MoE layers (3 to 7); 32 experts, top-4; 500 whole rows kept"
    assert f"window window 1{window}; model <m>, engine vllm" in text
    assert "planned <i>36 slots for 32 experts in 3 layers" in text
    assert "arm vanilla5 runs of vllm, 20,480 input and 10,240 output tokens" in text
    assert "demo: eplbredundant experts 4" in text
    assert "2 nodes of 2 ranks" in text
    assert of_recorded(Given()) == ""


def test_settings_that_differ_between_runs_are_all_told(given: Given) -> None:
    (first, *_) = given.arms["vanilla"]
    runs = [first, replace(first, settings={**first.settings, "max_concurrency": 32})]
    assert "max concurrency 8 or 32, requests 64" in Text(of_recorded(Given(arms={"a": runs}))).text
