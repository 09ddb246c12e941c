"""docs/first_gpu_run.md: its settings do what it says, and its log lines and checks are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import eplb_plugin
from eplb_plugin import PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.doctor import ranks, single
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.runtime.outcome import assess
from eplb_plugin.settings.config import load_config

ROOT = Path(eplb_plugin.__file__).parents[1]
TEXT = (ROOT / "docs" / "first_gpu_run.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_its_settings_are_valid(tmp_path: Path) -> None:
    """Stage 2 moves nothing, stage 3 a little."""
    files = []
    for number, text in enumerate(blocks("yaml")):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text)
    record_only, few = (load_config(file) for file in files)
    assert record_only.budget.max_moved_slots_total == 0
    assert few.budget.max_moved_slots == 2


@pytest.mark.parametrize("policy", ["affinity", "balanced"])
def test_a_budget_of_zero_plans_and_moves_nothing(policy: str) -> None:
    """Also where the placement in force is bad: weights may change, and the log says so."""
    rng, topology = np.random.default_rng(0), Topology(2, 2, 5)
    rows = (rng.exponential(size=(2, 400, 16)) * np.arange(1, 17)).argsort(2)[:, :, :4]
    statistics, before = RoutingStatistics.from_topk(rows, 16), linear_placement(2, 16, 20)
    in_force = plan_of(before, topology, "weighted")
    options = PlanOptions(max_moved_slots_total=0)
    made = plan(statistics, topology, policy=policy, dispatch="weighted", previous=in_force, options=options)
    assert np.array_equal(made.placement.phy2log, before.phy2log)
    assert ", 0 of 40 slots move, " in str(assess(statistics, in_force, made))


def formats() -> list[str]:
    """A regular expression of every text in the package that is filled in."""
    found = []
    for path in sorted((ROOT / "eplb_plugin").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[.\d]*[sdf]|\{:[^}]*\}", "\0", node.value))
    return [re.escape(text).replace("\0", ".*") for text in found if len(text.replace("\0", "")) > 8]


def test_its_log_lines_are_the_codes() -> None:
    """Every line quoted could be written by some text of the package; what is left out there is `…`."""
    lines = [line for block in blocks("log") for line in block.splitlines()]
    lines += re.findall(r"`(migration 1[: ].*?…)`", TEXT)
    assert len(lines) >= 8
    known = formats()
    for line in lines:
        assert any(re.fullmatch(one, line) for one in known), line


def test_it_explains_every_check() -> None:
    """The table has each, and says where it runs."""
    for name, runs in (("one GPU", single.CHECKS), ("several", ranks.CHECKS)):
        column = 2 if name == "one GPU" else 3
        rows = [line.split("|") for line in TEXT.splitlines() if re.match(r"\| `[a-z ]+` \|", line)]
        assert {row[1].strip(" `") for row in rows if row[column].strip() == "✓"} == {check.name for check in runs}
