"""A function takes at most seven parameters: where it would be more, some of them belong together and have a name."""

from __future__ import annotations

import ast
from pathlib import Path

import eplb_plugin

PACKAGE = Path(eplb_plugin.__file__).parent
MOST = 7
# Who may have more, and why. This list only gets shorter.
COMMANDS = {"cli/advise.advise", "cli/peo.plan", "cli/peo.simulate", "cli/plan.plan", "cli/record.record"}
COMMANDS |= {"cli/replay.replay", "cli/report.report", "cli/workload.make"}  # a command's options are its parameters
OTHERS = {
    "dispatch/triton_kernels._chosen": "called in a Triton kernel, with its loose pointers",
    "dispatch/triton_kernels.pass_kernel": "a Triton kernel's pointers and sizes; no GPU has tried tuples of them",
    "engines/vllm/peo._experts_apply": "vLLM's own signature, which a hook must have",
    "peo/schedule.make_schedule": "the settings of YAML's `peo`, by name",
}


def many() -> set[str]:
    """folder/module.function of all that have more; `self` and `cls` do not count."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                if len(names) - (names[:1] in (["self"], ["cls"])) > MOST:
                    found.add(f"{path.relative_to(PACKAGE).with_suffix('')}.{node.name}")
    return found


def test_at_most_seven() -> None:
    assert many() <= COMMANDS | set(OTHERS)


def test_no_exception_is_left_over() -> None:
    assert COMMANDS | set(OTHERS) <= many()
