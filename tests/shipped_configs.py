"""The command lines in the comments of configs/, as a shell would read them on the first node."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

CONFIGS = Path(__file__).parents[1] / "configs"


class Command(NamedTuple):
    """model: as on the model's page. words: the rest, with the settings' file by its path."""

    engine: str
    model: str
    words: list[str]


def commands(path: Path) -> list[Command]:
    """In the order of the file."""
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#   ")]
    text = " ".join(line.removesuffix("\\") if line.endswith("\\") else f"{line}\n" for line in lines)
    text = text.replace("$((8 * I))", "0").replace("--node-rank I", "--node-rank 0").replace("FIRST_NODE", "127.0.0.1")
    text = text.replace("configs/", f"{CONFIGS}/")
    found = []
    for engine, _, *words in (shlex.split(line) for line in text.splitlines()):
        flag = words.index("--model-path") if engine == "sglang" else -1
        found.append(Command(engine, words[flag + 1], words[:flag] + words[flag + 2 :] if flag >= 0 else words[1:]))
    return found


SHIPPED = [path for path in sorted(CONFIGS.glob("*.yaml")) if commands(path)]
ARCHITECTURES = {  # of config.json on the model's page
    "deepseek-ai/DeepSeek-R1": "DeepseekV3ForCausalLM",
    "moonshotai/Kimi-K2-Instruct": "DeepseekV3ForCausalLM",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen3MoeForCausalLM",
    "zai-org/GLM-4.5-FP8": "Glm4MoeForCausalLM",
}
