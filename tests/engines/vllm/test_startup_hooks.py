"""How a vLLM server is told to use the plugin, with vLLM's own parser and entry points; no model is loaded."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import cloudpickle
import pytest
import vllm.plugins
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import DPMoEEngineCoreActor, EngineCoreActor
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor

from engines.vllm.engine_configs import engine_config
from eplb_plugin.engines import hooks
from eplb_plugin.engines.vllm import activation, presence
from eplb_plugin.engines.vllm.startup_hooks import KEY, STARTUP_HOOKS, _init_device, configured
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import PluginConfig, parse_config

Launch = Callable[..., tuple[argparse.Namespace, Any]]


@pytest.fixture(scope="module")
def parser() -> Iterator[Any]:
    """The parser of `vllm serve`, built with the entrance hooked as it is in a server."""
    patch = pytest.MonkeyPatch()
    patch.setattr(vllm.plugins, "plugins_loaded", True)  # other plugins stay out of this process
    hooks.apply(STARTUP_HOOKS)
    yield make_arg_parser(FlexibleArgumentParser())
    hooks.remove(STARTUP_HOOKS)
    patch.undo()


@pytest.fixture
def launch(parser: Any, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Parse a command line as `vllm serve` does, up to the engine arguments."""
    monkeypatch.delenv("EPLB_PLUGIN_CONFIG", raising=False)

    def run(*words: str, environment: str | None = None) -> tuple[argparse.Namespace, Any]:
        if environment is not None:
            monkeypatch.setenv("EPLB_PLUGIN_CONFIG", environment)
        args = parser.parse_args(["no/such-model", *words])
        return args, AsyncEngineArgs.from_cli_args(args)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def file(text: str, name: str = "settings.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return file


def given_as_json(**values: Any) -> tuple[str, str]:
    return "--additional-config", json.dumps({KEY: values})


# what reaches the workers


def test_content_of_the_file_reaches_the_workers(launch: Launch, write: Callable[..., str]) -> None:
    """The flag's file becomes its content, defaults included, in the additional config; other keys stay."""
    path = write("policy: balanced\nbudget: {max_moved_slots: 5}\n")
    other = ("--additional-config", '{"other": {"a": 1}}')
    args, engine_args = launch("--enable-eplb", "--eplb-plugin-config", path, *other)
    config = parse_config({"policy": "balanced", "budget": {"max_moved_slots": 5}}, "")
    assert engine_args.additional_config == {"other": {"a": 1}, KEY: config.model_dump(mode="json")}
    assert args.additional_config == engine_args.additional_config
    assert json.loads(json.dumps(engine_args.additional_config)) == engine_args.additional_config
    assert configured(engine_args.additional_config) == config


@pytest.mark.parametrize(
    ("sources", "policy"),
    [
        (("flag", "json", "environment"), "balanced"),
        (("flag", "environment"), "balanced"),
        (("flag", "json"), "balanced"),
        (("json", "environment"), "deepseek"),
        (("json",), "deepseek"),
        (("environment",), "affinity"),
    ],
)
def test_precedence(launch: Launch, write: Callable[..., str], sources: tuple[str, ...], policy: str) -> None:
    """Flag before additional config before environment; where two are given the whole of the first counts."""
    words, environment = ["--enable-eplb"], None
    if "flag" in sources:
        words += ["--eplb-plugin-config", write("policy: balanced", "flag.yaml")]
    if "json" in sources:
        words += given_as_json(policy="deepseek", window_size=77)
    if "environment" in sources:
        environment = write("policy: affinity\nsample_rows: 512", "environment.yaml")
    _, engine_args = launch(*words, environment=environment)
    found = parse_config(engine_args.additional_config[KEY], "")
    expected = {
        "balanced": PluginConfig(policy="balanced"),
        "deepseek": PluginConfig(policy="deepseek", window_size=77),
        "affinity": PluginConfig(sample_rows=512),
    }
    assert found == expected[policy]


def test_what_is_overridden_is_not_read(launch: Launch, write: Callable[..., str]) -> None:
    """A broken file in the environment does not matter to who gives the flag."""
    flag = ("--eplb-plugin-config", write("policy: balanced"))
    _, engine_args = launch("--enable-eplb", *flag, environment="no-such-file.yaml")
    assert engine_args.additional_config[KEY]["policy"] == "balanced"


@pytest.mark.parametrize("words", [(), ("--enable-eplb",), ("--additional-config", '{"other": 1}')])
def test_not_asked_for_changes_nothing(launch: Launch, words: tuple[str, ...]) -> None:
    """Without settings the engine gets exactly what stock vLLM would give it."""
    args, engine_args = launch(*words)
    hooks.remove(STARTUP_HOOKS)
    stock = AsyncEngineArgs.from_cli_args(args)
    hooks.apply(STARTUP_HOOKS)
    assert KEY not in engine_args.additional_config
    assert engine_args == stock


def test_engine_config_file_may_name_ours(launch: Launch, write: Callable[..., str]) -> None:
    """vLLM's own --config FILE may carry our flag like any other."""
    ours = write("policy: balanced", "ours.yaml")
    engine = write(f"enable-eplb: true\neplb-plugin-config: {ours}\n", "engine.yaml")
    _, engine_args = launch("--config", engine)
    assert engine_args.additional_config[KEY]["policy"] == "balanced"


def test_flag_is_in_help(parser: Any) -> None:
    """The flag has its own group and says what it needs."""
    (action,) = [one for one in parser._actions if "--eplb-plugin-config" in one.option_strings]
    assert action.default is None
    assert "--enable-eplb" in action.help
    assert [group.title for group in parser._action_groups].count("eplb_plugin") == 1


# what is refused

EPLB = "--enable-eplb"
REFUSED = [
    # settings file or None, other words, the line on stderr ({path} = the file)
    ("polcy: x", [EPLB], "{path}: polcy: found unknown key, expected one of "),
    ("policy: fast", [EPLB], "{path}: policy: found 'fast', expected one of deepseek, balanced, affinity; fix: see "),
    ("sample_rows: 1", [EPLB], "{path}: sample_rows: found 1, expected an integer in 256..65536; fix: the nearest "),
    ("[", [EPLB], "{path}: not valid YAML ("),
    ("a: 1\na: 2", [EPLB], "{path}: not valid YAML (key 'a' given twice"),
    ("", [], "enable_eplb: found False, expected --enable-eplb, which the plugin builds on; fix: add --enable-eplb"),
    ("", [EPLB, "--enable-elastic-ep"], "enable_elastic_ep: found True, expected a fixed EP group; fix: remove"),
    (
        "topology: {nodes: 3}",
        [EPLB, "-tp", "4"],
        "topology: found nodes=3 × ranks_per_node=1, expected a product of 4 ",
    ),
    ("topology: {nodes: 4, ranks_per_node: 2}", [EPLB, "-tp", "2", "-dp", "2"], "topology: found nodes=4 × ranks_per"),
    ("topology: {node_of_rank: [0, 1]}", [EPLB, "-dp", "4"], "topology.node_of_rank: found 2 ranks, expected 4 (the "),
    (
        "topology: {node_of_rank: [0, 0, 1]}",
        [EPLB, "-dp", "3"],
        "{path}: topology.node_of_rank: found [1, 2] ranks per node",
    ),
    (None, [EPLB, *given_as_json(polcy="x")], "--additional-config eplb_plugin: polcy: found unknown key"),
    (
        None,
        [EPLB, *given_as_json(window_size=0)],
        "--additional-config eplb_plugin: window_size: found 0, expected an ",
    ),
    (None, [EPLB, "--additional-config", '{"eplb_plugin": 3}'], "--additional-config eplb_plugin: found int, expected"),
    (None, given_as_json(), "enable_eplb: found False"),
    (
        "",
        [EPLB, "--additional-config", "[1]"],
        "--additional-config: found '[1]', expected a JSON object; fix: ",
    ),
    (None, [EPLB, "--additional-config", '{"eplb_plugin": {'], "--additional-config: found '{\"eplb_plugin\": {', "),
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


@pytest.mark.parametrize("flag", [True, False])
def test_missing_file_refused(launch: Launch, capsys: pytest.CaptureFixture[str], flag: bool) -> None:
    """A file that does not exist is refused, whether the flag or the environment names it."""
    words = ("--eplb-plugin-config", "/no/such.yaml") if flag else ()
    with pytest.raises(SystemExit) as exit_:
        launch(EPLB, *words, environment=None if flag else "/no/such.yaml")
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("eplb-plugin: /no/such.yaml: cannot be read (No such file or directory)")


def test_foreign_additional_config_is_left_alone(launch: Launch) -> None:
    """What is no JSON object and does not mention us is vLLM's business, which keeps it as text."""
    _, engine_args = launch("--additional-config", "{")
    assert engine_args.additional_config == "{"


@pytest.mark.parametrize("words", [("-tp", "4"), ("-dp", "4"), ("-tp", "2", "-dp", "2"), ("-pcp", "2", "-dp", "2")])
def test_ep_size_is_all_ranks_that_share_experts(launch: Launch, write: Callable[..., str], words: Any) -> None:
    """The declared nodes are held against TP × DP × prefill context parallel."""
    path = write("topology: {nodes: 2, ranks_per_node: 2}")
    _, engine_args = launch(EPLB, "--eplb-plugin-config", path, *words)
    assert engine_args.additional_config[KEY]["topology"]["nodes"] == 2


# engines without a command line


def made(folder: Path, patch: pytest.MonkeyPatch, environment: str = "", **options: Any) -> Any:
    """The configuration that `LLM(**options)` makes with this variable set."""
    patch.setenv("EPLB_PLUGIN_CONFIG", environment)
    return engine_config(folder, patch, **options)


def test_the_variable_alone_reaches_workers_that_lack_it(
    parser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., str]
) -> None:
    """LLM(...) with the variable: vLLM's configuration holds the content, which Ray sends to workers without either."""
    path = write("policy: balanced\nbudget: {max_moved_slots: 5}\n")
    config = made(tmp_path, monkeypatch, path)
    Path(path).unlink()
    monkeypatch.delenv("EPLB_PLUGIN_CONFIG")
    sent = cloudpickle.loads(cloudpickle.dumps(config))
    found = configured(sent.additional_config)
    assert found is not None
    assert (found.policy, found.budget.max_moved_slots) == ("balanced", 5)


def test_given_in_the_program_before_the_environment(
    parser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLM(additional_config={"eplb_plugin": ...}) counts, whatever the variable says; other keys stay."""
    given = {KEY: {"policy": "deepseek"}, "other": 1}
    config = made(tmp_path, monkeypatch, "no-such-file.yaml", additional_config=given)
    assert config.additional_config["other"] == 1
    assert configured(config.additional_config) == PluginConfig(policy="deepseek")


def test_llm_without_settings_is_stock(parser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing given: vLLM's configuration has no word of us."""
    assert made(tmp_path, monkeypatch).additional_config == {}


@pytest.mark.parametrize(
    ("environment", "options", "line"),
    [
        ("no-such-file.yaml", {}, "no-such-file.yaml: cannot be read"),
        ("{}", {"enable_eplb": False}, "enable_eplb: found False, expected --enable-eplb"),
        ('{"topology": {"nodes": 3}}', {}, "topology: found nodes=3"),
    ],
)
def test_llm_refuses_what_the_command_line_refuses(
    parser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str, options: Any, line: str
) -> None:
    """In the program that calls LLM(...), as an exception of one line."""
    with pytest.raises(PluginError) as caught:
        made(tmp_path, monkeypatch, environment, **options)
    assert str(caught.value).startswith(line)


# workers


def test_configured() -> None:
    """A worker goes by vLLM's configuration alone."""
    for nothing in (None, {}, {"other": 1}, object()):
        assert configured(nothing) is None
    assert configured({KEY: {"policy": "deepseek"}}) == PluginConfig(policy="deepseek")
    with pytest.raises(PluginError, match="--additional-config eplb_plugin: polcy: found unknown key"):
        configured({KEY: {"polcy": 1}})


def test_worker_activates_before_its_device_and_confirms_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """init_device with settings: activation first, with the worker's configuration, and a look at the others last;
    without settings: only the original."""
    monkeypatch.delenv("EPLB_PLUGIN_CONFIG", raising=False)
    calls: list[Any] = []
    monkeypatch.setattr(activation, "activate", lambda config, vllm_config: calls.append((config, vllm_config)))
    monkeypatch.setattr(activation, "confirm", lambda vllm_config: calls.append(vllm_config))
    worker = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={}))
    _init_device(lambda self: calls.append(self), worker)
    assert calls == [worker]
    calls.clear()
    worker.vllm_config.additional_config = {KEY: {"policy": "balanced"}}
    _init_device(lambda self: calls.append(self), worker)
    assert calls == [(PluginConfig(policy="balanced"), worker.vllm_config), worker, worker.vllm_config]


def test_a_worker_alone_with_settings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that only a worker's environment has would place experts on some ranks: refused, and not ignored."""
    monkeypatch.setenv("EPLB_PLUGIN_CONFIG", "{}")
    worker = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={}))
    with pytest.raises(PluginError, match="EPLB_PLUGIN_CONFIG: found settings in a worker's environment, expected the"):
        _init_device(lambda self: None, worker)


def test_settings_arrive_only_where_the_plugin_works(
    parser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was told to do nothing, or lacks the package, refuses vLLM's configuration as it is unpickled."""
    sent = cloudpickle.dumps(made(tmp_path, monkeypatch, "{}"))
    monkeypatch.setenv("EPLB_PLUGIN_DISABLE", "1")
    with pytest.raises(PluginError, match="plugin: found EPLB_PLUGIN_DISABLE in a process of the engine, expected act"):
        cloudpickle.loads(sent)
    monkeypatch.setitem(sys.modules, "eplb_plugin.engines.vllm.startup_hooks", None)
    with pytest.raises(ModuleNotFoundError, match="eplb_plugin"):
        cloudpickle.loads(sent)


# the engine


def test_no_hook_is_on_a_class_that_ray_copies() -> None:
    """Ray makes a class of its own of vLLM's engine, with the methods as they are before a plugin is loaded."""
    classes = {hook.target.rpartition(".")[0] for hook in STARTUP_HOOKS}
    copied = (*DPMoEEngineCoreActor.__mro__, *EngineCoreActor.__mro__)
    ancestors = {f"{one.__module__}:{one.__name__}" for one in copied}
    assert not classes & ancestors


def test_the_engine_asks_its_workers_before_it_plans_their_caches(parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's executor, of whichever kind, asks with settings; without, only the original."""
    asked: list[Any] = []
    monkeypatch.setattr(presence, "refuse_inactive", lambda executor, level: asked.append(level))
    executor = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={}), collective_rpc=lambda name: [name])
    assert Executor.get_kv_cache_specs(executor) == ["get_kv_cache_spec"]
    assert asked == []
    executor.vllm_config.additional_config = {KEY: {"logging": {"level": "warning"}}}
    assert Executor.get_kv_cache_specs(executor) == ["get_kv_cache_spec"]
    assert asked == ["warning"]


def front_end(kind: type) -> Any:
    """As far as sleeping goes, with settings; what its engine is told is in `told`."""
    told: list[Any] = []

    async def later(*words: Any) -> None:
        told.append(words)

    core = SimpleNamespace(sleep=lambda *words: told.append(words), sleep_async=later)
    renderer = SimpleNamespace(clear_mm_cache=lambda: None, clear_mm_cache_async=AsyncMock())
    config = SimpleNamespace(additional_config={KEY: {}})
    return SimpleNamespace(told=told, engine_core=core, renderer=renderer, logger_manager=None, vllm_config=config)


def sleep(kind: Any, engine: Any, *words: Any) -> None:
    if inspect.isawaitable(done := kind.sleep(engine, *words)):
        asyncio.run(done)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [AsyncLLM, LLMEngine])
def test_sleep_level_2_is_refused_before_anything_pauses(parser: Any, kind: type) -> None:
    """It would discard the maps and tables with the experts: one line, and the engine is told nothing."""
    engine = front_end(kind)
    with pytest.raises(PluginError, match=r"sleep level: found 2, expected level 1: .*; fix: sleep at level 1, or"):
        sleep(kind, engine, 2)
    assert engine.told == []


@pytest.mark.parametrize("kind", [AsyncLLM, LLMEngine])
def test_other_sleep_is_vllms(parser: Any, kind: type) -> None:
    """Levels 0 and 1, and every level without settings."""
    engine = front_end(kind)
    sleep(kind, engine, 0)
    sleep(kind, engine)
    engine.vllm_config.additional_config = {}
    sleep(kind, engine, 2, "keep")
    assert engine.told == [(0, "abort"), (1, "abort"), (2, "keep")]
