"""A function takes at most seven parameters: where it would be more, some of them belong together and have a name.

Not so in Triton, whose pointers and sizes stay loose: no GPU has tried tuples of them.
"""

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
    "engines/vllm/peo._experts_apply": "vLLM's own signature, which a hook must have",
    "peo/schedule.make_schedule": "the settings of YAML's `peo`, by name",
}


def of_triton(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def many() -> set[str]:
    """folder/module.function of all that have more; `self` and `cls` do not count."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not of_triton(node):
                arguments = node.args
                names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                if len(names) - (names[:1] in (["self"], ["cls"])) > MOST:
                    found.add(f"{path.relative_to(PACKAGE).with_suffix('')}.{node.name}")
    return found


def test_at_most_seven() -> None:
    assert many() <= COMMANDS | set(OTHERS)


def test_no_exception_is_left_over() -> None:
    assert COMMANDS | set(OTHERS) <= many()
