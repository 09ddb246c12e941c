"""What is compared on the user's own GPUs: a server's arguments in every arm, and what the user's may not contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import mismatch
from ..files import write_atomic
from ..settings.config import PluginConfig, load_config, parse_config
from .engine import Engine, Eplb

# what each engine can run with the plugin; in SGLang --ep-dispatch-algorithm decides between nearest and hash
RULES = {"vllm": ("weighted", "hash", "cover"), "sglang": ("weighted", "cover", "nearest", "hash")}
# arguments that the arms differ in, or that the benchmark sets: the user's may not begin with one of them
OURS = (
    "--enable-eplb", "--eplb-config", "--eplb-plugin-config", "--eplb-algorithm", "--ep-num-redundant-experts",
    "--eplb-rebalance-num-iterations", "--expert-distribution-recorder-buffer-size", "--host", "--port", "--model-path",
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """settings: of the plugin, what differs from --config; None: an arm without the plugin."""

    name: str
    eplb: bool = True
    use_async: bool = True
    settings: Mapping[str, str] | None = None


def arms_of(engine: str) -> dict[str, Arm]:
    """Every arm that the engine knows, by name: the first is the usual reference."""
    known = [Arm("none", eplb=False), Arm("vanilla")]
    if engine == "vllm":
        known.append(Arm("vanilla-sync", use_async=False))
    known += [Arm("balanced", settings={"policy": "balanced"}), Arm("affinity", settings={"policy": "affinity"})]
    known += [Arm(f"affinity-{rule}", settings={"policy": "affinity", "dispatch": rule}) for rule in RULES[engine]]
    return {arm.name: arm for arm in known}


def named_arms(engine: str, names: Sequence[str]) -> list[Arm]:
    """Raises PluginError for a name that the engine has no arm for, or one given twice."""
    known = arms_of(engine)
    if unknown := [name for name in names if name not in known]:
        fix = "leave these out, or name some of those"
        raise mismatch("--arms", found=", ".join(unknown), expected=f"some of {', '.join(known)}", fix=fix)
    if len(set(names)) < len(names):
        raise mismatch("--arms", found=", ".join(names), expected="every arm once", fix="--runs repeats them")
    return [known[name] for name in names]


@dataclass(frozen=True)
class Eplbs:
    """What every arm with EPLB shares: the engine's settings, and the plugin's base settings."""

    eplb: Eplb
    config: PluginConfig

    @classmethod
    def read(cls, path: Path | None, redundant: int | None) -> Eplbs:
        """Window and interval of the settings file hold for the engine's own EPLB too, and so does its redundancy.

        Raises PluginError for a file that is missing or wrong, and where the redundancy is unequal or not given.
        """
        config = PluginConfig() if path is None else load_config(path)
        if config.num_redundant_experts is not None and redundant not in (None, config.num_redundant_experts):
            expected = f"{config.num_redundant_experts} as in {path}: the same in every arm"
            raise mismatch("--redundant-experts", found=redundant, expected=expected, fix="pass one of them")
        redundant = config.num_redundant_experts if redundant is None else redundant
        if redundant is None:
            expected = "a count, the same for every arm with EPLB"
            fix = "an eighth of the experts is usual"
            raise mismatch("--redundant-experts", found="nothing", expected=expected, fix=fix)
        return cls(Eplb(redundant, config.window_size, config.step_interval), config)

    def write(self, arm: Arm, folder: Path) -> Path:
        """The arm's settings file. It names the redundancy, so that a server with another one refuses it."""
        values: dict[str, Any] = self.config.model_dump(mode="json", exclude_unset=True)
        values = {**values, "num_redundant_experts": self.eplb.redundant_experts, **(arm.settings or {})}
        path = folder / f"{arm.name}.yaml"
        parse_config(values, path.name)
        write_atomic(path, yaml.safe_dump(values, sort_keys=False).encode())
        return path


def arm_arguments(engine: Engine, arm: Arm, shared: Eplbs | None, folder: Path) -> list[str]:
    """What a server of the arm gets beside the user's arguments. shared: needed by arms with EPLB."""
    if not arm.eplb:
        return []
    assert shared is not None
    eplb = shared.eplb
    words = engine.eplb_arguments(Eplb(eplb.redundant_experts, eplb.window_size, eplb.step_interval, arm.use_async))
    return words + (engine.plugin_arguments(shared.write(arm, folder)) if arm.settings is not None else [])


def refuse_ours(words: Sequence[str]) -> None:
    """Raises PluginError if the user's arguments of the server set what the arms set."""
    for word in words:
        name = word.partition("=")[0].partition(".")[0]
        if name in OURS:
            expected = "none that the benchmark sets: EPLB, redundancy, the plugin's settings, model and address"
            fix = "use --redundant-experts, --config, --model"
            raise mismatch("arguments after --", found=name, expected=expected, fix=fix)
