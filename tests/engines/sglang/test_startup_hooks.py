"""How an SGLang server is told to use the plugin, with SGLang's own parser and plugin loader; no model is loaded."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eplb_plugin.engines import hooks
from eplb_plugin.engines.settings import ENVIRONMENT, from_environment
from eplb_plugin.settings.config import load_config, parse_config
from shipped_configs import CONFIGS, commands

Launch = Callable[..., Any]
AFFINITY = ["--enable-eplb", "--eplb-algorithm", "affinity", "--tp-size", "4", "--ep-size", "4"]


@pytest.fixture(scope="module")
def hooked() -> Iterator[Any]:
    """SGLang's server arguments with the entrance in force, as its loader of plugins leaves it."""
    from sglang.srt import server_args

    from eplb_plugin.engines.sglang import registry
    from eplb_plugin.engines.sglang.startup_hooks import STARTUP_HOOKS

    registry.apply(STARTUP_HOOKS)
    yield server_args
    hooks.remove(STARTUP_HOOKS)


@pytest.fixture
def launch(hooked: Any, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """What `sglang serve` and `python -m sglang.launch_server` do with their command line."""
    monkeypatch.setenv(ENVIRONMENT, "")  # so that what the launcher leaves there is taken back

    def run(*words: str, environment: str | None = None) -> Any:
        if environment is not None:
            monkeypatch.setenv(ENVIRONMENT, environment)
        return hooked.prepare_server_args(["--model-path", "no/such-model", *words])

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def file(text: str, name: str = "settings.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return file


def test_content_of_the_file_is_left_to_the_schedulers(launch: Launch, write: Callable[..., str]) -> None:
    """The launcher leaves the settings, not the file's name, in the environment that its processes inherit."""
    path = write("policy: balanced\nbudget: {max_moved_slots: 5}\n")
    args = launch(*AFFINITY, "--eplb-plugin-config", path)
    assert args.eplb_algorithm == "affinity"
    Path(path).unlink()
    assert from_environment() == parse_config({"policy": "balanced", "budget": {"max_moved_slots": 5}}, "")


def test_the_flag_goes_before_the_environment(launch: Launch, write: Callable[..., str]) -> None:
    """A broken file in the environment does not matter to who gives the flag."""
    launch(*AFFINITY, "--eplb-plugin-config", write("policy: balanced"), environment="no-such-file.yaml")
    assert from_environment() == parse_config({"policy": "balanced"}, "")


@pytest.mark.parametrize("text", ["policy: deepseek\n", '{"policy": "deepseek"}'])
def test_the_environment_names_a_file_or_holds_the_settings(
    launch: Launch, write: Callable[..., str], text: str
) -> None:
    """A launcher started by another program may be given either."""
    launch(*AFFINITY, environment=text if text.startswith("{") else write(text))
    assert from_environment() == parse_config({"policy": "deepseek"}, "")


@pytest.mark.parametrize("words", [[], ["--enable-eplb"], ["--enable-eplb", "--eplb-algorithm", "deepseek"]])
def test_not_asked_for_changes_nothing(launch: Launch, hooked: Any, words: list[str]) -> None:
    """Without settings SGLang gets what it would get without us, and nothing is left in the environment."""
    args = launch(*words)
    parser = argparse.ArgumentParser()
    hooked.ServerArgs.add_cli_args(parser)
    stock = hooks._layers(hooked.ServerArgs.__dict__["from_cli_args"])[-1]
    plain = stock(hooked.ServerArgs, parser.parse_args(["--model-path", "no/such-model", *words]))
    assert {name: getattr(args, name) for name in args.__struct_fields__ if name != "random_seed"} == {
        name: getattr(plain, name) for name in plain.__struct_fields__ if name != "random_seed"
    }
    assert os.environ[ENVIRONMENT] == ""


def test_a_tool_with_few_arguments_is_left_alone(launch: Launch, hooked: Any) -> None:
    """Programs beside the server make server arguments from parsers of their own."""
    args = hooked.ServerArgs.from_cli_args(argparse.Namespace(model_path="no/such-model"))
    assert args.model_path == "no/such-model"


def test_engine_config_file_may_name_ours(launch: Launch, write: Callable[..., str]) -> None:
    """SGLang's own --config FILE may carry our flag like any other."""
    ours = write("policy: balanced", "ours.yaml")
    engine = write(f"enable-eplb: true\neplb-algorithm: affinity\neplb-plugin-config: {ours}\n", "engine.yaml")
    launch("--config", engine)
    assert from_environment() == parse_config({"policy": "balanced"}, "")


def test_another_node_may_wait_for_the_settings(launch: Launch) -> None:
    """Nodes are started by commands of their own; one of them needs to have the settings."""
    launch(*AFFINITY, "--nnodes", "2", "--node-rank", "1", "--dist-init-addr", "127.0.0.1:1")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_in_a_shipped_file_is_accepted(path: Path, launch: Launch) -> None:
    """SGLang's own parser reads it, and the plugin's checks of it pass; a file without commands goes with any."""
    written = commands(path)
    found = [one.words for one in written if one.engine == "sglang"]
    for words in found or [["--tp-size", "32", *AFFINITY[:3], "--eplb-plugin-config", str(path)]] * (not written):
        assert launch(*words).eplb_algorithm == "affinity"
        assert from_environment() == load_config(path)


REFUSED = [
    # settings, or None; words; the line on stderr ({path} = the file)
    (None, AFFINITY, "--eplb-algorithm: found affinity alone, expected settings of the plugin, which affinity means; "),
    ("", ["--enable-eplb"], "eplb_algorithm: found auto, expected affinity, which means the plugin here; fix: add "),
    ("", ["--eplb-algorithm", "affinity"], "enable_eplb: found False, expected --enable-eplb, which the plugin builds"),
    ("", [*AFFINITY, "--pp-size", "2"], "pp_size: found 2, expected 1: all ranks of the server are one EP group"),
    ("", [*AFFINITY, "--ep-size", "2"], "ep_size: found 2, expected 4 (the TP size): all ranks of the server are"),
    ("", [*AFFINITY, "--elastic-ep-backend", "mooncake"], "elastic_ep_backend: found mooncake, expected a fixed EP"),
    ("", [*AFFINITY, "--enable-lora"], "lora: found True, expected no LoRA: adapters of experts are not moved with"),
    ("", [*AFFINITY, "--weight-cache-mode", "daemon"], "weight_cache_mode: found daemon, expected off: experts are"),
    (
        "",
        [*AFFINITY, "--enable-dp-attention-local-control-broadcast"],
        "local_control_broadcast: found True, expected requests that all ranks handle at the same pass: ",
    ),
    ("", [*AFFINITY, "--ep-dispatch-algorithm", "lp"], "ep_dispatch_algorithm: found lp, expected static or dynamic, "),
    ("", [*AFFINITY, "--expert-distribution-recorder-mode", "per_token"], "recorder_mode: found per_token, expected "),
    (
        "dispatch: hash",
        [*AFFINITY, "--ep-dispatch-algorithm", "static"],
        "dispatch: found hash, expected auto or one of weighted, cover, nea",
    ),
    (
        "exact: {}",
        [*AFFINITY, "--enable-two-batch-overlap"],
        "batches: found two at once, expected one pass at",
    ),
    ("topology: {nodes: 3}", AFFINITY, "topology: found nodes=3 × ranks_per_node=1, expected a product of 4 "),
    ("polcy: x", AFFINITY, "{path}: polcy: found unknown key, expected one of "),
    ("[", AFFINITY, "{path}: not valid YAML ("),
]


@pytest.mark.parametrize(("text", "words", "line"), REFUSED)
def test_refused_in_one_line(
    launch: Launch,
    write: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    words: list[str],
    line: str,
) -> None:
    """What cannot work ends the launcher with exit code 2 and one line: key, value, rule, what would be valid."""
    path = "" if text is None else write(text)
    flag = ["--eplb-plugin-config", path] if path else []
    with pytest.raises(SystemExit) as exit_:
        launch(*words, *flag)
    assert exit_.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("eplb-plugin: " + line.replace("{path}", path))
    assert "; fix: " in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("content", ["/no/such.yaml", "{", '{"polcy": 1}'])
def test_bad_environment_refused(launch: Launch, capsys: pytest.CaptureFixture[str], content: str) -> None:
    """A file that is missing and content that is no JSON or has another key, in one line."""
    with pytest.raises(SystemExit):
        launch(*AFFINITY, environment=content)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("eplb-plugin: ")
    assert "; fix: " in line


def test_another_plugin_that_replaces_the_entrance_is_noticed(
    launch: Launch, hooked: Any, write: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """SGLang only logs a hook that it could not apply: the launcher looks whether all of the entrance is in force."""
    from sglang.srt.eplb import expert_location

    replaced = lambda model_config, moe_ep_rank: None  # noqa: E731
    monkeypatch.setattr(expert_location, "compute_initial_expert_location_metadata", replaced)
    with pytest.raises(SystemExit):
        launch(*AFFINITY, "--eplb-plugin-config", write(""))
    assert "compute_initial_expert_location_metadata: found not hooked, expected the eplb" in capsys.readouterr().err


# a process of its own

INERT = """
import importlib, json, os, sys, warnings
warnings.simplefilter("ignore")
import sglang.srt.plugins as plugins

NAMES = ["sglang.srt.server_args", "sglang.srt.plugins.hook_registry", "sglang.srt.runtime_context"]
EPLB = "eplb_manager expert_distribution expert_location eplb_algorithms expert_location_dispatch lplb_solver"
NAMES += [f"sglang.srt.eplb.{name}" for name in EPLB.split()]
NAMES += ["sglang.srt.layers.moe.topk", "sglang.srt.layers.moe.hash_topk",
          "sglang.srt.model_executor.forward_batch_info",
          "sglang.srt.model_executor.model_runner_components.moe_ep_setup"]

def symbols():
    found = {}
    for name in NAMES:
        for key, value in vars(importlib.import_module(name)).items():
            found[f"{name}:{key}"] = value
            if isinstance(value, type) and value.__module__ == name:
                found.update({f"{name}:{key}.{attribute}": one for attribute, one in vars(value).items()})
    return found

def load():
    loaded, before, plugins._plugins_loaded = set(sys.modules), symbols(), False
    plugins.load_plugins()
    after = symbols()
    changed = sorted(name for name in {*before, *after} if before.get(name) is not after.get(name))
    new = sorted(name for name in set(sys.modules) - loaded if name.split(".")[0] in ("eplb_plugin", "numba"))
    return {"symbols": len(before), "changed": changed, "new": new}

symbols()
results = {}
os.environ["EPLB_PLUGIN_DISABLE"] = "1"
results["disabled"] = load()
os.environ["EPLB_PLUGIN_DISABLE"] = "0"
results["inert"] = load()
print(json.dumps(results))
"""


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EPLB_PLUGIN")}
    kept |= {"SGLANG_PLUGINS": "eplb_plugin", "SGLANG_USE_CPU_ENGINE": "1", **variables}
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=180, check=False)


def test_inert_until_asked_for() -> None:
    """Disabled, SGLang's plugin loader changes no symbol; enabled, only those of the entrance are wrapped."""
    from eplb_plugin.engines.sglang.startup_hooks import STARTUP_HOOKS

    done = run([sys.executable, "-c", INERT])
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["disabled"]["symbols"] > 500
    assert results["disabled"]["changed"] == []
    assert not [name for name in results["disabled"]["new"] if name.startswith("eplb_plugin.engines.hooks")]
    assert results["inert"]["changed"] == sorted(hook.target for hook in STARTUP_HOOKS)
    new = results["inert"]["new"]
    assert "eplb_plugin.engines.sglang.startup_hooks" in new
    assert "eplb_plugin.engines.sglang.worker_hooks" not in new
    assert not [
        name for name in new if name.startswith(("numba", "eplb_plugin.planning", "eplb_plugin.runtime.rebalancer"))
    ]


MOVED = """
import sys
from sglang.srt.server_args import ServerArgs
ServerArgs.from_cli_args = classmethod(lambda cls, args, more: None)
from sglang.srt.plugins import load_plugins
load_plugins()
print("started")
"""


@pytest.mark.parametrize(("variables", "code"), [({}, 0), ({ENVIRONMENT: "{}"}, 2)])
def test_a_moved_engine_starts_unless_the_plugin_was_asked_for(variables: dict[str, str], code: int) -> None:
    """Merely installed, the plugin is no reason not to serve; asked for, it must not be left out silently."""
    done = run([sys.executable, "-W", "ignore", "-c", MOVED], **variables)
    assert done.returncode == code, done.stderr
    assert ("started" in done.stdout) == (code == 0)
    assert "from_cli_args: found (cls, args, more), expected (cls, args); fix: use the engine" in done.stderr
    assert code == 0 or "Traceback" not in done.stderr
