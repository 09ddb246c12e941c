"""The command line of `eplb-plugin bench`, refused in one line where it cannot be right."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..errors import PluginError, mismatch
from .accuracy import lm_eval_program
from .arms import Arm, Eplbs, named_arms, refuse_ours
from .engine import Load
from .engines import ENGINES

COMMAND = "eplb-plugin bench"
SEEDS_PER_RUN = 1000


@dataclass(frozen=True)
class Options:
    """What was asked for.

    model: None = the test bed's small one, with on_cpu only
    urls: by arm, where servers run already
    prompts: requests at each concurrency; None: four for each client
    warmup: requests before all of them; None: two for each client of the largest concurrency
    """

    engine: str
    model: Path | None
    arms: tuple[Arm, ...]
    urls: dict[str, str]
    concurrency: tuple[int, ...]
    lengths: tuple[int, int]
    dataset: Path | None
    prompts: int | None
    warmup: int | None
    runs: int
    seed: int
    eplb: Eplbs | None
    accuracy: str | None
    on_cpu: bool
    start_seconds: float
    out: Path
    server_arguments: tuple[str, ...]

    def load(self, run: int, index: int) -> Load:
        """Of the concurrency of that index. Every run has prompts of its own, the same in all arms; those of a dataset
        are the same in all runs, because answers of other lengths could not be compared."""
        clients = self.concurrency[index]
        return self._load(self.prompts or 4 * clients, clients, run, index)

    def warmup_load(self, run: int) -> Load:
        clients = max(self.concurrency)
        return self._load(self.warmup or 2 * clients, clients, run, SEEDS_PER_RUN - 1)

    def _load(self, requests: int, clients: int, run: int, index: int) -> Load:
        seed = self.seed + index + (SEEDS_PER_RUN * run if self.dataset is None else 0)
        return Load(requests, clients, *self.lengths, seed=seed, dataset=self.dataset)


def parse(words: Sequence[str], test_bed: bool = False) -> Options:
    """test_bed: it has `--cpu` too. Raises PluginError for anything that argparse does not refuse by itself."""
    words = list(words)
    split = words.index("--") if "--" in words else len(words)
    given = _parser(test_bed).parse_args(words[:split])
    server_arguments = tuple(words[split + 1 :])
    refuse_ours(server_arguments)
    urls = _urls(given.url)
    if urls and (given.arms or server_arguments or given.cpu or given.config or given.redundant_experts is not None):
        expected = "neither --arms, --config, --redundant-experts, --cpu nor arguments of a server"
        fix = "leave the options of servers out"
        raise mismatch("--url", found="servers that run already", expected=expected, fix=fix)
    arms = tuple(Arm(name) for name in urls) or tuple(
        named_arms(given.engine, (given.arms or "none,vanilla,affinity").split(","))
    )
    if given.model is None and not given.cpu:
        raise mismatch("--model", found="nothing", expected="a folder or a name", fix="name the model to serve")
    if given.dataset is not None and not given.dataset.is_file():
        raise PluginError(f"{given.dataset}: cannot be read (no such file); fix: pass a file in ShareGPT's format")
    if given.accuracy:
        lm_eval_program()
    eplb = None
    if not urls and any(arm.eplb for arm in arms):
        eplb = Eplbs.read(given.config, _cpu_redundancy(given))
    out = given.out or Path("out") / "serving" / f"{given.engine}-{datetime.now():%Y%m%d-%H%M%S}"
    if out.exists() and any(out.iterdir()):
        fix = "pass another folder as --out"
        raise mismatch("--out", found=f"{out}, which is not empty", expected="a new folder", fix=fix)
    return Options(
        given.engine, given.model, arms, urls,
        _concurrency(given.concurrency or ("2,4" if given.cpu else "64,128,256,1536,2048")),
        _lengths(given.random or ("64:32" if given.cpu else "4096:1536")), given.dataset, given.prompts, given.warmup,
        given.runs, given.seed, eplb, given.accuracy, given.cpu, given.start_seconds, out, server_arguments,
    )  # fmt: skip


def _parser(test_bed: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        usage=f"{COMMAND} [options] [-- arguments of every server]",
        description="Start a server for every arm in turn, load it with the engine's own generator, compare the arms.",
    )
    parser.add_argument("--engine", default="vllm", choices=ENGINES)
    parser.add_argument("--model", type=Path, help="folder or name, as the engine takes it")
    parser.add_argument("--arms", help="none, vanilla, vanilla-sync, balanced, affinity, affinity-RULE (default: none,vanilla,affinity)")  # noqa: E501  # fmt: skip
    parser.add_argument("--url", action="append", default=[], metavar="ARM=URL", help="a server that runs already")
    parser.add_argument("--concurrency", help="requests in flight, several: 64,128,256,1536,2048 is the default")
    parser.add_argument("--random", metavar="IN:OUT", help="random prompts of that many tokens (default: 4096:1536)")
    parser.add_argument("--dataset", type=Path, help="instead: a file in ShareGPT's format")
    parser.add_argument("--prompts", type=_positive, help="requests per concurrency (default: four per client)")
    parser.add_argument("--warmup", type=_positive, help="requests before measuring (default: two per client)")
    parser.add_argument("--runs", type=_positive, default=5, help="starts of every arm's server, arms in turn (default: 5)")  # noqa: E501  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="the plugin's settings; arms replace policy and dispatch")
    parser.add_argument("--redundant-experts", type=int, metavar="N", help="per layer, in every arm with EPLB")
    parser.add_argument("--accuracy", metavar="TASK", help="a task of lm_eval, once per arm: gsm8k")
    parser.set_defaults(cpu=False)
    if test_bed:
        parser.add_argument("--cpu", action="store_true", help="the test bed on CPU: its layout and model")
    parser.add_argument("--start-seconds", type=float, default=3600.0, help="until a server must be ready")
    parser.add_argument("--out", type=Path, help="a new folder (default: out/serving/ENGINE-TIME)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}, expected >= 1")
    return value


def _counts(text: str, separator: str) -> tuple[int, ...]:
    """Empty where the text is none."""
    words = text.split(separator)
    return tuple(map(int, words)) if all(word.isdecimal() and int(word) for word in words) else ()


def _concurrency(text: str) -> tuple[int, ...]:
    counts = _counts(text, ",")
    if not counts or len(set(counts)) < len(counts):
        expected = "different counts >= 1, comma between"
        raise mismatch("--concurrency", found=text, expected=expected, fix="pass 64,128,256, for example")
    return counts


def _lengths(text: str) -> tuple[int, int]:
    counts = _counts(text, ":")
    if len(counts) != 2:
        raise mismatch("--random", found=text, expected="IN:OUT, in tokens", fix="pass 4096:1536, for example")
    return counts[0], counts[1]


def _urls(words: Sequence[str]) -> dict[str, str]:
    urls: dict[str, str] = {}
    for word in words:
        name, _, url = word.partition("=")
        if not name or not url.startswith(("http://", "https://")) or "/" in name:
            fix = "put the arm's name before the address"
            raise mismatch("--url", found=word, expected="ARM=http://host:port", fix=fix)
        if name in urls:
            raise mismatch("--url", found=f"two servers for {name}", expected="one", fix="give every arm one address")
        urls[name] = url
    return urls


def _cpu_redundancy(given: argparse.Namespace) -> int | None:
    """The test bed's model has 32 experts on two ranks."""
    if given.redundant_experts is None and given.config is None and given.cpu:
        return 4
    return given.redundant_experts
