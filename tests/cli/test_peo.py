"""`eplb-plugin peo simulate|plan|check`: figures of the model, settings that can be used, refusals in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from eplb_plugin.peo.cost import Traffic, even_shares
from eplb_plugin.peo.presets import HARDWARE, MODELS
from eplb_plugin.peo.ranking import unsplit_us
from eplb_plugin.peo.schedule import make_schedule
from eplb_plugin.peo.timeline import simulate
from eplb_plugin.settings.config import parse_config

Answer = tuple[int, str, str]
CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ("--ranks", 32, "--batch", 64)


def test_simulate(call: Callable[..., Answer]) -> None:
    """The same figures as the model's, op by op, and never without saying that it is one."""
    hardware, traffic = HARDWARE["H20"], Traffic(MODELS["glm-4.5"], even_shares(32, 5), 64)
    schedule = make_schedule(
        "overlap-2", num_rounds=5, num_local_experts=5, num_device_sms=78, deepep_send_num_sms=8, up_deepgemm_num_sms=60
    )
    words = ("--hardware", "H20", "--model", "glm-4.5", "--method", "overlap-2", "--num-rounds", 5)
    words += ("--deepep-send-num-sms", 8, "--up-deepgemm-num-sms", 60)
    code, out, err = call("peo", "simulate", *SMALL, *words, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["note"] == "model, not measurement"
    assert answer["total_us"] == simulate(schedule, hardware, traffic).total_us
    assert answer["non_overlap_us"] == unsplit_us(hardware, [traffic])[64]
    assert [bar["kind"] for bar in answer["bars"]] == [op.kind for op in schedule]
    code, out, err = call("peo", "simulate", *SMALL, *words)
    assert (code, err) == (0, "")
    assert out.endswith("model, not measurement\n")
    assert "gemm up 3 on gemm" in out


def test_simulate_an_uneven_load_and_a_stock_buffer(call: Callable[..., Answer]) -> None:
    plain, uneven, stock = (
        json.loads(call("peo", "simulate", *SMALL, "--json", *words)[1])
        for words in ((), ("--imbalance-factor", 1.5), ("--stock-api", "--method", "overlap-2"))
    )
    assert uneven["imbalance_factor"] == pytest.approx(1.5, abs=0.01)
    assert uneven["total_us"] > plain["total_us"]
    assert stock["total_us"] > stock["non_overlap_us"]


def test_plan_prints_settings_that_check_accepts(call: Callable[..., Answer], tmp_path: Path) -> None:
    code, out, err = call("peo", "plan", "--ranks", 32, "--batch", 64, "--batch", 128, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    best = answer["ranked"][0]
    assert best["mean_gain"] >= answer["ranked"][-1]["mean_gain"] - 0.01
    assert set(best["gain"]) == {"64", "128"}
    assert answer["stock"]["mean_gain"] < 0.0
    assert [(one["claim"]["family"], one["claim"]["batch"]) for one in answer["claims"]][:2] == [
        ("DPSK", 4),
        ("DPSK", 128),
    ]
    peo = parse_config(yaml.safe_load(answer["settings"]), "").peo
    assert peo is not None
    assert (peo.method, peo.num_rounds, peo.deepep_send_num_sms) == (
        best["method"],
        best["num_rounds"],
        best["comm_sms"],
    )
    (tmp_path / "settings.yaml").write_text(answer["settings"])
    words = ("--local-experts", 8, "--ranks", 32, "--num-sms", 132)
    code, out, err = call("peo", "check", tmp_path / "settings.yaml", *words)
    assert (code, err) == (0, "")
    assert f"legal: {best['method']}, {best['num_rounds']} rounds, patched API, 2 DeepEP calls a layer" in out


def test_plan_in_words(call: Callable[..., Answer]) -> None:
    """Claims stand beside the model; where nothing is gained, the advice is to leave it."""
    code, out, err = call("peo", "plan", "--ranks", 32, "--batch", 64, "--show", 3)
    assert (code, err) == (0, "")
    assert "claimed for DPSK at batch 128: +31 %; this model, deepseek-v3: " in out
    assert "overlap-2 stock" in out
    assert "peo:\n  method: overlap-" in out
    assert out.endswith("model, not measurement\n")
    off = call("peo", "plan", "--ranks", 32, "--batch", 1, "--link-gbs", 10000, "--link-us", 0.1)[1]
    assert "advice: leave PEO off" in off
    assert "peo:" not in off


def test_check_of_ready_settings(call: Callable[..., Answer]) -> None:
    for name in ("peo_deepseek.yaml", "peo_qwen.yaml"):
        words = ("--local-experts", 8, "--ranks", 16, "--num-sms", 132, "--json")
        code, out, err = call("peo", "check", CONFIGS / name, *words)
        assert (code, err) == (0, "")
        assert [(one["legal"], one["api"]) for one in json.loads(out)] == [(True, "patched")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{}", "found no peo section, expected one; fix: add peo: {method: overlap-1}"),
        ("peo: {num_rounds: 3}", "peo.num_rounds: found 3 rounds of 8 local experts"),
        ("peo: {deepep_send_num_sms: 3}", "found 3 SMs, expected >= 5, for 64 experts over 32 ranks"),
        ("peo: {deepep_send_num_sms: 200}", "peo.deepep_send_num_sms: found 200, expected 1..132"),
    ],
)  # fmt: skip
def test_check_refuses(call: Callable[..., Answer], tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    always = ("--local-experts", 8, "--ranks", 32, "--num-sms", 132)
    code, out, err = call("peo", "check", tmp_path / "settings.yaml", *always)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--hardware", "B9"), "--hardware: found B9, expected H20, H100"),
        (("--model", "gpt"), "--model: found gpt, expected deepseek-v3"),
        (("--ranks", 7), "--ranks: found 7, expected a divisor of 256 experts"),
        (("--method", "overlap-9"), "peo.method: found 'overlap-9'"),
        (("--stock-api",), "overlap-1 with the stock API, expected overlap-2"),
        (("--family", "normal"), "family: found 'normal'"),
        (("--imbalance-factor", 40), "imbalance factor of layer 0: found 40.0"),
        (("--link-us", -1), "hardware.link_us: found -1.0"),
    ],
)
def test_simulate_refuses(call: Callable[..., Answer], words: tuple[object, ...], line: str) -> None:
    code, out, err = call("peo", "simulate", *SMALL, *words)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
