"""A server that replays recorded tokens, whose kind changes at a chosen step: its answers, and when it rebalances."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eplb_plugin.bench.engine import Completion
from eplb_plugin.bench.server import Server
from kept_state import metrics_of
from serving.greedy import largest_difference

LAYERS, EXPERTS, TOP_K = 4, 32, 4  # of the tests' model
WINDOW, MIN_STEPS = 16, 64
SETTINGS = f"""policy: balanced
dispatch: weighted
topology: {{nodes: 2}}
sample_rows: 1024
rebalance: {{when_balancedness_falls_by: 0.1, windows: 2, min_steps: {MIN_STEPS}}}
"""
# requests one after the other; a round of them is as many tokens as a trace has, so that it finds the rows of the last
STEPS, PROMPT, REQUESTS = 8, 249, 4
ROUND = STEPS * REQUESTS
TOKENS = REQUESTS * (PROMPT + STEPS - 1)
EVEN, UNEVEN = [*range(0, EXPERTS, 4)], [*range(8)]  # where ranks hold experts in order of ids
BEGINS, TOLERANCE = "begins early: balancedness", 1e-4


def write(path: Path, hot: list[int], seed: int) -> Path:
    """A trace in which each token's first two experts are of `hot`, the others any."""
    draw = np.random.default_rng(seed)
    scores = draw.random((LAYERS, TOKENS, EXPERTS))
    first = draw.permuted(np.tile(hot, (LAYERS, TOKENS, 1)), axis=2)[:, :, :2]
    np.put_along_axis(scores, first, 2.0, axis=2)
    np.savez(path, topk_ids=np.argsort(-scores, axis=2)[:, :, :TOP_K].astype(np.uint8), num_experts=EXPERTS)
    return path


def replayed(folder: Path, shift: int) -> str:
    """From step `shift` on ranks are uneven where they were even."""
    even, uneven = write(folder / "even.npz", EVEN, 1), write(folder / "uneven.npz", UNEVEN, 2)
    return f"trace={even},steps={shift},then={uneven}"


@dataclass
class Course:
    """What a server did. steps: of requests so far; answers: of whole rounds; seen: by line of the log, after how many
    steps it was there.
    """

    server: Server
    steps: int = 0
    answers: list[list[Completion]] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def round(self) -> None:
        """The same requests as ever, one after the other."""
        draw, answers = random.Random(5), []
        for _ in range(REQUESTS):
            prompt = [draw.randrange(10, 2000) for _ in range(PROMPT)]
            request = self.server.engine.completion_request(self.server.model, prompt, STEPS)
            answers.append(self.server.engine.completion(self.server.post(*request)))
            self.steps += STEPS
            for line in re.findall(rf"rebalance \d+ of|{BEGINS}", self.server.text()):
                self.seen.setdefault(line, self.steps)
        self.answers.append(answers)

    @property
    def changes(self) -> list[int]:
        """Rounds that were answered otherwise than the one before."""
        pairs = zip(self.answers, self.answers[1:], strict=False)
        return [number for number, pair in enumerate(pairs, 1) if largest_difference(*pair) > TOLERANCE]

    @property
    def early(self) -> float:
        """Rebalances that began early, by the server's metric, which is not there before the first."""
        found = re.findall(r"^eplb_plugin_early_rebalances_total\{.*\} (\S+)$", metrics_of(self.server), re.MULTILINE)
        return sum(map(float, found))


def answers_a_shift(server: Server, shift: int) -> Course:
    """The traffic changes at this step: a rebalance begins within the windows that this takes, once, and not before.

    The first rebalance was two rounds earlier at the least, and the engine's next is far away.
    """
    course = Course(server)
    while course.steps < shift // ROUND * ROUND:
        course.round()
    assert [*course.seen] == ["rebalance 1 of"]
    assert course.early == 0, "the traffic is as planned"
    while "rebalance 2 of" not in course.seen:
        assert course.steps < shift + 4 * ROUND, f"none after {course.steps - shift} steps"
        course.round()
    # two windows and one that the shift is in the middle of, half a window for the switch; then the plan's window
    assert 0 < course.seen[BEGINS] - shift <= 3.5 * WINDOW + STEPS
    assert course.seen["rebalance 2 of"] - course.seen[BEGINS] <= WINDOW + 2 * STEPS
    planned = re.findall(r"rebalance 2 of .* (\d+) of \d+ slots move", server.text())
    assert int(planned[0]) > 0
    while course.steps < course.seen["rebalance 2 of"] + MIN_STEPS + 6 * WINDOW:
        course.round()
    assert [*course.seen] == ["rebalance 1 of", BEGINS, "rebalance 2 of"]
    assert course.early == 1, "once: the traffic is as planned again"
    assert "refused" not in server.text()
    return course
