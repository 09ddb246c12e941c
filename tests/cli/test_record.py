"""`eplb-plugin record`: what comes out of each source, and what is refused in one line. Real servers: tests/ENGINE."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from eplb_plugin import RoutingStatistics, Topology
from eplb_plugin.deployment import Deployment
from eplb_plugin.engines.sglang import http_recorder
from eplb_plugin.files import load_arrays
from eplb_plugin.runtime.state_directory import StateDirectory
from http_answers import answering

ROWS = np.array([[[0, 1], [2, 3]], [[1, 2], [3, 0]]])
Call = Callable[..., tuple[int, str, str]]


def deployment(model: str = "some-moe") -> Deployment:
    return Deployment(model, "vllm", "decode", Topology(2, 1, 3), 4, (1, 3))


def window(ids: np.ndarray = ROWS) -> RoutingStatistics:
    return RoutingStatistics.from_topk(ids, 4, [1, 3])


def serve_windows(folder: Path, *models: str) -> threading.Thread:
    """A server in whose folder a window ends every half second."""

    def work() -> None:
        for model in models:
            time.sleep(0.5)
            StateDirectory(folder).keep_window(deployment(model), window())

    thread = threading.Thread(target=work)
    thread.start()
    return thread


# the plugin's own windows


def test_windows_that_end_are_merged(tmp_path: Path, call: Call) -> None:
    """Those that were there before do not count; the file says what it is of."""
    folder, out = tmp_path / "state", tmp_path / "out.safetensors"
    StateDirectory(folder).keep_window(deployment(), window())
    while not folder.is_dir() or not list(folder.glob("*.safetensors")):
        time.sleep(0.01)
    server = serve_windows(folder, "some-moe", "some-moe")
    code, printed, problem = call(
        "record", out, "--state", folder, "--seconds", "3", "--model", "/x/some-moe", "--json"
    )
    server.join()
    assert code == 0, problem
    np.testing.assert_array_equal(RoutingStatistics.read(out).load, 2 * window().load)
    _, header = load_arrays(out, "statistics")
    expected = {"model": "some-moe", "engine": "vllm", "phase": "decode", "tokens": 4, "top_k": 2, "num_layers": 2}
    for found in (json.loads(printed), header):
        assert expected.items() <= found.items()


def test_another_model_or_none_is_refused(tmp_path: Path, call: Call) -> None:
    """In one line, and nothing is written."""
    folder, out = tmp_path / "state", tmp_path / "out.safetensors"
    code, _, problem = call("record", out, "--state", folder)
    assert (code, len(problem.splitlines())) == (2, 1)
    assert "--state: found no folder" in problem
    folder.mkdir()
    code, _, problem = call("record", out, "--state", folder, "--seconds", "0.3")
    assert "found no window that ended within 0.3 s" in problem
    server = serve_windows(folder, "some-moe")
    code, _, problem = call("record", out, "--state", folder, "--seconds", "2", "--model", "other")
    server.join()
    assert "model: found some-moe, expected other" in problem
    server = serve_windows(folder, "some-moe", "third")
    code, _, problem = call("record", out, "--state", folder, "--seconds", "3")
    server.join()
    assert "found windows of some-moe (decode) and third (decode), expected one model" in problem
    assert not out.exists()


# SGLang


class Handler(BaseHTTPRequestHandler):
    """As SGLang answers, with its recording made up: what the client sends, and in which order."""

    info: ClassVar[dict[str, Any] | None] = None
    folder: ClassVar[Path]
    asked: ClassVar[list[str]] = []
    counts: ClassVar[list[int]] = []  # of every expert and pass, in one recording after another; the last stays

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = self.path != "/server_info" or self.info is not None
        self.send_response(200 if known else 404)
        self.end_headers()
        if self.path == "/server_info" and self.info is not None:
            self.wfile.write(json.dumps(self.info).encode())
        if self.path == "/dump_expert_distribution_record":
            counts = torch.zeros(3, 2, 4, dtype=torch.int32)
            counts[:, 1] = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]  # layer 0 is dense
            self.write(counts)

    def write(self, counts: torch.Tensor) -> None:
        """One file, or one of every rank."""
        stem = f"expert_distribution_recorder_{time.time()}"
        assert self.info is not None
        if self.info["expert_distribution_recorder_mode"] != "per_pass":
            torch.save({"rank": 0, "logical_count": counts}, self.folder / f"{stem}.pt")
            return
        records = [{"forward_pass_id": step, "global_physical_count": one} for step, one in enumerate(counts)]
        record = {"records": records, "last_physical_to_logical_map": torch.arange(4).repeat(2, 1)}
        torch.save(record, self.folder / f"{stem}_0.pt")
        threading.Timer(0.2, torch.save, (record, self.folder / f"{stem}_1.pt")).start()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def sglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Handler.folder, Handler.asked, Handler.info, Handler.counts = tmp_path, [], None, [24]
    monkeypatch.setattr(http_recorder, "ARRIVAL_SECONDS", 0.6)
    with answering(Handler) as address:
        yield address


@pytest.mark.parametrize("eplb", [False, True])
def test_the_recorder_is_started_and_dumped(tmp_path: Path, call: Call, sglang: str, eplb: bool) -> None:
    """With EPLB on it records always, and starting or stopping it would disturb the next rebalance."""
    mode = None if eplb else "stat"
    Handler.info = {
        "expert_distribution_recorder_mode": mode, "enable_eplb": eplb, "model_path": "/m/moe", "ep_size": 2,
        "moe_a2a_backend": "none", "disaggregation_mode": "prefill",
    }  # fmt: skip
    out = tmp_path / "out.safetensors"
    code, printed, problem = call("record", out, "--url", sglang, "--dumps", tmp_path, "--seconds", "0.1", "--json")
    assert code == 0, problem
    assert RoutingStatistics.read(out).load.tolist() == [[36, 36, 36, 36]], "counted by both ranks"
    assert RoutingStatistics.read(out).layer_ids.tolist() == [1]
    assert json.loads(printed)["phase"] == "prefill"
    names = ["server_info", *([] if eplb else ["start_expert_distribution_record"]), "dump_expert_distribution_record"]
    assert Handler.asked == [f"/{name}" for name in [*names, *([] if eplb else ["stop_expert_distribution_record"])]]


@pytest.mark.parametrize(("backend", "total"), [("none", 72), ("deepep", 144)])
def test_every_rank_writes_its_passes(
    tmp_path: Path, call: Call, sglang: str, monkeypatch: pytest.MonkeyPatch, backend: str, total: int
) -> None:
    """Mode per_pass: with an all-to-all each rank has tokens of its own, without one all have the same."""
    monkeypatch.setattr(http_recorder, "ARRIVAL_SECONDS", 20.0)  # the second rank is late
    Handler.info = {
        "expert_distribution_recorder_mode": "per_pass", "enable_eplb": False, "tp_size": 2, "ep_size": 2,
        "moe_a2a_backend": backend,
    }  # fmt: skip
    out = tmp_path / "out.safetensors"
    code, _, problem = call("record", out, "--url", sglang, "--dumps", tmp_path, "--seconds", "0.1")
    assert code == 0, problem
    assert RoutingStatistics.read(out).load.tolist() == [[total] * 4]
    assert RoutingStatistics.read(out).layer_ids.tolist() == [1]


def record_of(counts: list[int], eplb: bool, folder: Path, call: Call, url: str) -> tuple[int, str]:
    mode = None if eplb else "stat"
    Handler.info = {"expert_distribution_recorder_mode": mode, "enable_eplb": eplb}
    Handler.asked.clear()
    Handler.counts = counts
    code, _, problem = call("record", folder / "out.safetensors", "--url", url, "--dumps", folder, "--seconds", "0.1")
    return code, problem


@pytest.mark.parametrize(
    ("counts", "total"), [([12], 36), ([0, 12], 36), ([1, 0, 5, 5], 33)], ids=["enough", "empty", "thin"]
)
def test_recordings_that_a_rebalance_has_just_begun_are_added_up(
    tmp_path: Path, call: Call, sglang: str, counts: list[int], total: int
) -> None:
    """With EPLB on, each rebalance begins the recording afresh."""
    dumps = len(counts)
    code, problem = record_of(counts, True, tmp_path, call, sglang)
    assert code == 0, problem
    assert Handler.asked.count("/dump_expert_distribution_record") == dumps
    assert (RoutingStatistics.read(tmp_path / "out.safetensors").load == total).all()


def test_what_there_is_when_the_time_is_over(
    tmp_path: Path, call: Call, sglang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thin recording is better than none; without EPLB, no token in all of the window means no traffic."""
    monkeypatch.setattr(http_recorder, "TRAFFIC_SECONDS", -1.0)
    code, problem = record_of([1], True, tmp_path, call, sglang)
    assert code == 0, problem
    assert (RoutingStatistics.read(tmp_path / "out.safetensors").load == 3).all()
    for eplb in (True, False):
        code, problem = record_of([0], eplb, tmp_path, call, sglang)
        assert code == 2
        assert "found no token, expected traffic while it was made" in problem
        assert Handler.asked.count("/dump_expert_distribution_record") == 1


def test_servers_that_cannot_be_recorded_are_refused(tmp_path: Path, call: Call, sglang: str) -> None:
    """Before anything is asked of the recorder: SGLang's scheduler would fail without one."""
    out = tmp_path / "out.safetensors"
    _, _, problem = call("record", out, "--url", sglang)
    assert "found another kind of server, expected an SGLang server; vLLM tells no routing over HTTP" in problem
    Handler.info = {"expert_distribution_recorder_mode": None, "enable_eplb": False}
    _, _, problem = call("record", out, "--url", sglang)
    assert "recorder mode: found None, expected stat, per_pass or per_token" in problem
    assert set(Handler.asked) == {"/server_info"}
    Handler.info = {"expert_distribution_recorder_mode": "stat"}
    (tmp_path / "elsewhere").mkdir()
    _, _, problem = call("record", out, "--url", sglang, "--dumps", tmp_path / "elsewhere", "--seconds", "0.1")
    assert "found 0 new files in" in problem
    _, _, problem = call("record", out, "--url", "http://127.0.0.1:9")
    assert "no answer" in problem
    for address in ("localhost:1", "file:///etc/passwd", "http://[", "http://a b"):
        code, _, problem = call("record", out, "--url", address)
        assert (code, len(problem.splitlines())) == (2, 1), problem
    assert not out.exists()


def test_files_of_the_recorder_are_converted(tmp_path: Path, call: Call) -> None:
    """One per rank in mode per_token; of ranks that route the same tokens the first counts."""
    files, out = [], tmp_path / "out.safetensors"
    for rank in range(4):
        ids = torch.tensor([[[0, 1 + rank // 2]]])
        record = {"rank": rank, "topk_ids_of_layer": ids}
        files += ["--dump", tmp_path / f"expert_distribution_recorder_1.5_{rank}.pt"]
        torch.save({"records": [record], "last_physical_to_logical_map": torch.arange(4)[None]}, files[-1])
    code, _, problem = call("record", out, *files, "--owner-group-size", "2")
    assert code == 0, problem
    assert RoutingStatistics.read(out).load.tolist() == [[2, 1, 1, 0]]
    files[1].write_bytes(files[1].read_bytes()[:50])
    code, _, problem = call("record", out, *files, "--owner-group-size", "2")
    assert code == 2
    assert "cannot be read as a dump of SGLang" in problem


@pytest.mark.parametrize("words", [[], ["--url", "http://x", "--state", "y"]])
def test_one_source_is_needed(tmp_path: Path, call: Call, words: list[str]) -> None:
    code, _, problem = call("record", tmp_path / "out.safetensors", *words)
    assert code == 2
    assert "expected one of --url" in problem


def test_the_name_of_the_file(tmp_path: Path, call: Call) -> None:
    _, _, problem = call("record", tmp_path / "out.npz", "--state", tmp_path)
    assert "OUT: found out.npz, expected a name in .safetensors" in problem
