"""The edits for DeepEP: nothing is touched unless every file is the one they were made for; compiled where nvcc is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from eplb_plugin.peo.cuda import ROUND_ARGUMENTS

FOLDER = Path(__file__).parents[1] / "patches" / "deep_ep"
APPLY = FOLDER / "apply.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deep_ep_apply", APPLY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


apply = load()
OLD = "one\ntwo\nthree\nfour\nfive\n"


@pytest.mark.parametrize(
    ("script", "new"),
    [
        ("", OLD),
        ("5a\nsix\n.\n2,3c\n2 and 3\n.\n1d\n", "2 and 3\nfour\nfive\nsix\n"),
        ("0a\nzero\n.\n", "zero\n" + OLD),
        ("4,5d\n", "one\ntwo\nthree\n"),
    ],
)
def test_ed_commands(script: str, new: str):
    assert apply.edited(OLD, script) == new


@pytest.mark.parametrize(
    ("script", "words"), [("9d\n", "has 5 lines"), ("s/a/b/\n", "not an ed command"), ("3,2d\n", "5 lines")]
)
def test_other_commands_are_refused(script: str, words: str):
    with pytest.raises(apply.PatchError, match=words):
        apply.edited(OLD, script)


def test_every_file_has_edits_with_whole_commands():
    """From the end of the file to its beginning, so that line numbers hold; and they end where they should."""
    files = json.loads((FOLDER / "edits.json").read_text())["files"]
    assert {file["edits"] for file in files.values()} == {path.name for path in (FOLDER / "edits").iterdir()}
    for file in files.values():
        assert all(re.fullmatch("[0-9a-f]{64}", file[which]) for which in ("before", "after"))
        script = (FOLDER / "edits" / file["edits"]).read_text()
        starts = [int(match[1]) for match in re.finditer(r"^(\d+)(?:,\d+)?[acd]$", script, re.MULTILINE)]
        assert starts == sorted(starts, reverse=True)
        filler = "".join(f"line {number}\n" for number in range(1, starts[0] + 200))
        assert apply.edited(filler, script) != filler


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files and their edits, as if they were DeepEP's."""
    (tmp_path / "edits").mkdir()
    (tmp_path / "deep_ep" / "buffers").mkdir(parents=True)
    (tmp_path / "deep_ep" / "buffers" / "legacy.py").touch()
    (tmp_path / "csrc").mkdir()
    files = {}
    for name in ("a.cu", "b.py"):
        (tmp_path / name).write_text(OLD)
        (tmp_path / "edits" / f"{name}.ed").write_text("2c\nTWO\n.\n")
        new = OLD.replace("two", "TWO")
        files[name] = {"edits": f"{name}.ed", "before": apply.digest(OLD), "after": apply.digest(new)}
    (tmp_path / "edits.json").write_text(json.dumps({"repository": "r", "first": "f", "last": "l", "files": files}))
    monkeypatch.setattr(apply, "HERE", tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["apply.py", *map(str, words)])
    try:
        apply.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_edits_once(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run(monkeypatch, checkout, "--check") == 0
    assert (checkout / "a.cu").read_text() == OLD
    assert run(monkeypatch, checkout) == 0
    assert "TWO" in (checkout / "a.cu").read_text() and "TWO" in (checkout / "b.py").read_text()  # noqa: PT018
    capsys.readouterr()
    assert run(monkeypatch, checkout) == 0
    assert capsys.readouterr().out == "nothing to do: every file is edited already\n"


@pytest.mark.parametrize("spoiled", ["file", "edits", "missing"])
def test_all_or_nothing(
    spoiled: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if spoiled == "file":
        (checkout / "b.py").write_text(OLD + "newer\n")
    elif spoiled == "edits":
        (checkout / "edits" / "b.py.ed").write_text("2c\nTOO\n.\n")
    else:
        (checkout / "b.py").unlink()
    assert run(monkeypatch, checkout) == 2
    assert (checkout / "a.cu").read_text() == OLD
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "; fix: " in error


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ([], "no folder deep_ep"),
        (["deep_ep/buffer.py", "csrc/kernels/internode_ll.cu"], "DeepEP before its second version"),
        (["deep_ep/buffers/elastic.py", "csrc/elastic/buffer.hpp"], "version 2.5 has removed the low-latency kernels"),
        (["deep_ep_v25/buffers/ep.py"], "SGLang's DeepEP 2.5, which has no low-latency kernels"),
        (["deep_ep/buffers/legacy.py", "deep_ep/_C.so"], "an installed package, without the sources of its kernels"),
        (["deep_ep/buffers/legacy.py", "csrc/legacy/buffer.hpp"], "SGLang's fork, whose kernels differ"),
    ],
)
def test_other_versions_are_named(
    there: list[str], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In one line: what was found, what is expected, and what to do."""
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("use_nvfp4: bool = False\n")
    assert run(monkeypatch, tmp_path) == 2
    error = capsys.readouterr().err
    manifest = json.loads((FOLDER / "edits.json").read_text())
    assert error.startswith(f"apply.py: {tmp_path}: found ")
    assert found in error
    assert "expected DeepEP's main from d4f41e4e93 (which vLLM 0.32 builds) to dd758caf45" in error
    assert error.endswith(f"; fix: check out {manifest['first']} of {manifest['repository']}\n")


def test_edited_calls_take_the_arguments_by_which_the_plugin_knows_them():
    """Each with a default, so that calls without rounds stay as they are."""
    dispatch, combine = ROUND_ARGUMENTS, ROUND_ARGUMENTS | {"is_x_in_round"}
    script = (FOLDER / "edits" / "legacy.py.ed").read_text()
    added = [set(re.findall(r"(\w+): (?:bool|int) = ", hunk)) for hunk in re.split(r"^\.$", script, flags=re.MULTILINE)]
    assert [one for one in added if one] == [combine, dispatch | {"async_finish", "return_recv_hook"}]


def our_functions() -> str:
    """The two functions between ids and a round's numbers, out of the edits."""
    script = (FOLDER / "edits" / "internode_ll.cu.ed").read_text()
    return script[script.index("// Per-expert overlap") : script.index("\n.\n", script.index("int peo_index_of("))]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run the device functions on the host")
def test_rounds_count_every_expert_once_and_padding_never(tmp_path: Path):
    """The very lines of the patch, compiled for the host: inverse to each other, out of range and −1 handled."""
    (tmp_path / "check.cpp").write_text(f"""
#include <initializer_list>
#define __device__
#define __forceinline__ inline
{our_functions()}
int main() {{
    for (int ranks : {{1, 2, 8}}) for (int local : {{1, 4, 12}}) for (int rounds : {{1, 2, 3, 4, 12}}) {{
        if (local % rounds) continue;
        const int experts = ranks * local;
        int seen[96] = {{}};
        for (int r = 0; r < rounds; ++r) {{
            for (int i = 0; i < experts / rounds; ++i) {{
                const int id = peo_expert_at(i, experts, local, rounds, r);
                if (id < 0 or id >= experts or id % local * rounds / local != r) return 1;
                if (peo_index_of(id, local, rounds, r) != i) return 2;
                ++seen[id];
                for (int other = 0; other < rounds; ++other)
                    if (other != r and peo_index_of(id, local, rounds, other) >= 0) return 3;
            }}
            if (peo_expert_at(experts / rounds, experts, local, rounds, r) != experts) return 4;
            if (peo_index_of(-1, local, rounds, r) >= 0) return 5;
        }}
        for (int id = 0; id < experts; ++id) if (seen[id] != 1) return 6;
    }}
}}
""")
    subprocess.run(["g++", "-std=c++20", "-o", tmp_path / "check", tmp_path / "check.cpp"], check=True)
    assert subprocess.run([tmp_path / "check"]).returncode == 0


SOURCE, NVSHMEM = os.environ.get("EPLB_DEEPEP_SOURCE"), os.environ.get("EPLB_NVSHMEM_HOME")
NEEDS = [
    name
    for name, there in (
        ("EPLB_DEEPEP_SOURCE (a checkout of DeepEP)", SOURCE),
        ("EPLB_NVSHMEM_HOME (with include/nvshmem.h)", NVSHMEM),
        ("nvcc", shutil.which("nvcc")),
    )
    if not there
]


@pytest.mark.full
@pytest.mark.skipif(bool(NEEDS), reason=f"compile check needs {', '.join(NEEDS)}")
def test_compiles_for_hopper(tmp_path: Path):
    """Compiles, that is all: no GPU has run it."""
    source = tmp_path / "DeepEP"
    shutil.copytree(str(SOURCE), source, ignore=shutil.ignore_patterns(".git"))
    subprocess.run([sys.executable, APPLY, source], check=True)
    includes = ["deep_ep/include", "csrc", "csrc/kernels/legacy", f"{NVSHMEM}/include", *extra_includes()]
    subprocess.run(
        ["nvcc", "-std=c++20", "--extended-lambda", "--expt-relaxed-constexpr", "-rdc=true",
         "-gencode", "arch=compute_90,code=sm_90", *(f"-I{one}" for one in includes),
         "-c", "csrc/kernels/legacy/internode_ll.cu", "-o", tmp_path / "internode_ll.o"],
        cwd=source, check=True,
    )  # fmt: skip
    assert (tmp_path / "internode_ll.o").stat().st_size > 100_000


def extra_includes() -> list[str]:
    return [folder for folder in os.environ.get("EPLB_EXTRA_INCLUDES", "").split(os.pathsep) if folder]
