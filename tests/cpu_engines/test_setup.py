"""scripts/setup: what it refuses, and that it does nothing where nothing is to be done. The long way is run by CI."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def build(monkeypatch, tmp_path):
    """The module, on an empty repository."""
    monkeypatch.syspath_prepend(SCRIPTS)
    from environment import build

    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "_lists_digest", lambda engine, folder: "lists")
    monkeypatch.setattr(build, "_local_digest", lambda engine: (tmp_path / "pyproject.toml").read_text())
    (tmp_path / "pyproject.toml").write_text("first")
    return build


@pytest.fixture
def engine(build):
    from environment.engines import Engine

    python = sys.version_info[:2]
    return Engine("toy", (python,), "absent-probe==1", stubs=(), steps=(), local_packages=(), check=("--version",))


@pytest.fixture
def steps(build, monkeypatch):
    """The steps taken, none of them for real."""
    taken = []

    def make_environment(builder):
        taken.append("environment")
        builder.folder.mkdir(exist_ok=True)

    monkeypatch.setattr(build._Builder, "make_environment", make_environment)
    monkeypatch.setattr(build._Builder, "install_local_packages", lambda builder: taken.append("local"))
    monkeypatch.setattr(build._Builder, "check", lambda builder: taken.append("check"))
    return taken


def test_an_unknown_engine_is_one_line():
    result = subprocess.run([sys.executable, SCRIPTS / "setup", "tensorrt"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "scripts/setup: found engine 'tensorrt', expected one of vllm, sglang: name one of those\n"


def test_only_what_has_changed_is_done_again(build, engine, steps, tmp_path, monkeypatch):
    build.build(engine)
    build.build(engine)
    assert steps == ["environment", "local", "check"]
    (tmp_path / "pyproject.toml").write_text("second")
    build.build(engine)
    assert steps[3:] == ["local", "check"]
    monkeypatch.setattr(build, "_lists_digest", lambda engine, folder: "another")
    build.build(engine)
    assert steps[5:] == ["environment", "local", "check"]


@pytest.mark.parametrize(
    ("step", "again"),
    [("make_environment", ["environment", "local", "check"]), ("install_local_packages", ["local", "check"])],
)
def test_only_an_interrupted_part_is_done_again(build, engine, steps, monkeypatch, step, again):
    def interrupt(builder):
        builder.folder.mkdir(exist_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build._Builder, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            build.build(engine)
    steps.clear()
    build.build(engine)
    assert steps == again


def test_another_python_is_refused(build, engine, steps, monkeypatch):
    object.__setattr__(engine, "pythons", ((3, 1), (3, 2)))
    with pytest.raises(
        build.SetupError, match=r"found Python 3\.\d+\.\d+, expected python3\.1 or python3\.2: run `python3\.1 "
    ):
        build.build(engine)
    assert steps == []


def test_a_missing_torch_build_is_said_early_and_names_the_setting(build, engine, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(build.SetupError, match=r"found no absent-probe==1, .* PIP_EXTRA_INDEX_URL") as error:
        build.build(engine)
    assert "://" not in str(error.value)
    assert "absent-probe" in capsys.readouterr().err  # the log's tail
    assert not (build.ROOT / ".venv-toy" / ".complete").exists()


def test_both_lists_have_what_the_report_needs():
    """So that its tests are not skipped where an environment is made: plotly is an extra, and no engine brings it."""
    root = SCRIPTS.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in extras["report"]:
        name = re.split("[<>=]", word)[0]
        for engine in ("vllm", "sglang"):
            folder = SCRIPTS / "environment"
            assert name in (folder / f"{engine}.txt").read_text().splitlines()
            assert f"\n{name}==" in (folder / f"{engine}.constraints.txt").read_text()
