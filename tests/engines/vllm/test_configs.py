"""Every file in configs/ starts a vLLM server, as far as a machine without GPUs can tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vllm.plugins
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.models.registry import ModelRegistry
from vllm.utils.argparse_utils import FlexibleArgumentParser

from eplb_plugin.engines import hooks
from eplb_plugin.engines.vllm.startup_hooks import STARTUP_HOOKS, configured
from eplb_plugin.settings.config import load_config
from shipped_configs import ARCHITECTURES, CONFIGS, commands

GENERAL = ["--data-parallel-size", "32", "--enable-expert-parallel", "--enable-eplb"]


@pytest.fixture(scope="module")
def parser() -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    patch.setattr(vllm.plugins, "plugins_loaded", True)  # other plugins stay out of this process
    patch.delenv("EPLB_PLUGIN_CONFIG", raising=False)
    hooks.apply(STARTUP_HOOKS)
    yield make_arg_parser(FlexibleArgumentParser())
    hooks.remove(STARTUP_HOOKS)
    patch.undo()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_vllm_accepts_the_command_in_the_file(path: Path, parser: Any) -> None:
    """vLLM's own parser reads it, and the plugin's checks of the command line pass; a file without a command goes with
    any of theirs.
    """
    found = [one.words for one in commands(path) if one.engine == "vllm"]
    for words in found or [[*GENERAL, "--eplb-plugin-config", str(path)]]:
        args = parser.parse_args(["no/such-model", *words])
        AsyncEngineArgs.from_cli_args(args)
        assert configured(args.additional_config) == load_config(path)


@pytest.mark.parametrize("name", [*ARCHITECTURES])
def test_models_with_a_command_for_vllm_have_eplb_there(name: str) -> None:
    """The class that vLLM's registry holds for the model's architecture."""
    model = ModelRegistry._try_load_model_cls(ARCHITECTURES[name])
    assert hasattr(model, "set_eplb_state")
