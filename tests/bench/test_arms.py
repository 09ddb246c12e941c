"""The arms of the benchmark on a user's machine, and what they are asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eplb_plugin.bench.arms import arm_arguments, arms_of
from eplb_plugin.bench.engine import Load
from eplb_plugin.bench.engines import ENGINES
from eplb_plugin.bench.options import parse
from eplb_plugin.settings.config import load_config
from serve_bench_runs import config


@pytest.mark.parametrize("engine", ENGINES)
def test_arms_differ_in_what_they_are_named_for_only(engine: str, tmp_path: Path) -> None:
    """Every arm with EPLB has the same redundancy, window and interval; the plugin's also the same other settings."""
    path = config(tmp_path, "window_size: 100\nstep_interval: 400\nsample_rows: 512\nnum_redundant_experts: 16\n")
    options = parse(["--engine", engine, "--model", "m", "--config", str(path), "--out", str(tmp_path / "o")])
    words = {name: arm_arguments(ENGINES[engine], arm, options.eplb, tmp_path) for name, arm in arms_of(engine).items()}
    assert words.pop("none") == []
    shared = [word for word in words["vanilla"] if word not in ("true", "false")]
    assert {"16", "100", "400"} <= set(shared)
    for name, given in words.items():
        assert [word for word in given if word not in ("true", "false")][: len(shared)] == shared, name
    settings = {name: load_config(tmp_path / f"{name}.yaml") for name in words if "vanilla" not in name}
    assert settings["balanced"].policy == "balanced"
    for name, one in settings.items():
        assert (one.num_redundant_experts, one.sample_rows) == (16, 512), name
        assert one.dispatch == (name.partition("-")[2] or "auto")


def test_synchronous_vanilla_is_vllm_s_own_switch(tmp_path: Path) -> None:
    """vanilla runs EPLB in the background, vanilla-sync does not; SGLang knows no such thing."""
    options = parse(["--model", "m", "--redundant-experts", "8", "--out", str(tmp_path / "o")])
    known = arms_of("vllm")
    last = {
        name: arm_arguments(ENGINES["vllm"], known[name], options.eplb, tmp_path)[-1] for name in known if "van" in name
    }
    assert last == {"vanilla": "true", "vanilla-sync": "false"}
    assert "vanilla-sync" not in arms_of("sglang")


def test_redundancy_of_the_flag_is_the_plugin_s_too(tmp_path: Path) -> None:
    """The arm's settings name it, so that a server with another one refuses them."""
    options = parse(["--model", "m", "--redundant-experts", "8", "--out", str(tmp_path / "o")])
    assert options.eplb is not None
    path = options.eplb.write(arms_of("vllm")["affinity"], tmp_path)
    assert load_config(path).num_redundant_experts == 8


# the load


def test_loads_differ_by_run_and_not_by_arm(tmp_path: Path) -> None:
    """Random prompts are new in every run and concurrency; those of a file are the same in all runs."""
    words = ["--model", "m", "--concurrency", "8,16", "--redundant-experts", "8", "--out", str(tmp_path / "o")]
    options = parse([*words, "--random", "100:50"])
    loads = [options.load(run, index) for run in range(2) for index in range(2)]
    assert [(one.requests, one.concurrency) for one in loads] == [(32, 8), (64, 16)] * 2
    assert {(one.input_tokens, one.output_tokens) for one in loads} == {(100, 50)}
    seeds = [one.seed for one in (*loads, options.warmup_load(0), options.warmup_load(1))]
    assert len(set(seeds)) == 6
    answers = config(tmp_path, "[]")
    filed = replace(options, dataset=answers)
    assert filed.load(0, 1) == filed.load(1, 1) != filed.load(1, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_load_generator_is_told(engine: str) -> None:
    """Random lengths or the file, never both."""
    random = ENGINES[engine].bench(Path("m"), "http://u", Load(8, 2, 100, 50), Path("r.json"))
    filed = ENGINES[engine].bench(Path("m"), "http://u", Load(8, 2, dataset=Path("chats.json")), Path("r.json"))
    assert random[random.index("--random-input-len") + 1] == "100"
    assert "chats.json" in filed
    assert "--random-input-len" not in filed
    assert "--dataset-path" not in random
