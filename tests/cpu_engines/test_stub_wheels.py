"""The hand-written wheels of scripts/environment: pip installs them, and what they hold can be imported, not used."""

import base64
import csv
import hashlib
import importlib
import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture
def stub_wheels(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    from environment import stub_wheels

    return stub_wheels


def test_the_record_names_every_file_with_its_digest(stub_wheels, tmp_path):
    path = stub_wheels.write_wheel(stub_wheels.Stub("some-name", "1.0+absent", ("other==2",)), tmp_path)
    assert path.name == "some_name-1.0+absent-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        record = {
            row[0]: row[1:] for row in csv.reader(wheel.read("some_name-1.0+absent.dist-info/RECORD").decode().split())
        }
        assert set(record) == set(wheel.namelist())
        for name, (digest, size) in record.items():
            if not name.endswith("RECORD"):
                content = wheel.read(name)
                assert int(size) == len(content)
                assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().strip(
                    "="
                )


def test_equal_stubs_give_equal_bytes(stub_wheels, tmp_path):
    stub = stub_wheels.Stub("name", "1.0")
    first = stub_wheels.write_wheel(stub, tmp_path).read_bytes()
    assert stub_wheels.write_wheel(stub, tmp_path).read_bytes() == first


def test_pip_installs_one(stub_wheels, tmp_path):
    path = stub_wheels.write_wheel(stub_wheels.Stub("some-name", "1.0+absent", ("other==2",)), tmp_path)
    target = tmp_path / "site"
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(path)], check=True)
    (distribution,) = importlib.metadata.distributions(path=[str(target)])
    assert (distribution.name, distribution.version) == ("some-name", "1.0+absent")
    assert distribution.requires == ["other==2"]
    assert [entry.name for entry in target.iterdir()] == ["some_name-1.0+absent.dist-info"]


@pytest.fixture
def toy(stub_wheels, tmp_path, monkeypatch):
    """An installed stub with two modules."""
    stub = stub_wheels.Stub("toy-stub", "1.5+absent", modules=("toy_stub", "toy_stub.deep.io"))
    with zipfile.ZipFile(stub_wheels.write_wheel(stub, tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "toy_stub", raising=False)
    return importlib.import_module("toy_stub")


def test_any_name_of_a_stub_module_can_be_imported(toy):
    """Also as a base class, in an annotation, and as an enumeration with members."""
    from toy_stub.deep.io import Mode, Reader

    assert toy.__version__ == "1.5+absent"
    assert issubclass(type("Own", (Reader,), {}), Reader)
    assert Mode.BICUBIC | None
    assert not hasattr(toy, "__path_to_nothing__")


def test_calling_a_name_of_a_stub_module_says_that_it_is_one(toy):
    """With the full name of what was called, so that a traceback names what is missing."""
    for name, call in (("toy_stub.resize", toy.resize), ("toy_stub.ops.nms", toy.ops.nms)):
        with pytest.raises(NotImplementedError, match=f"{name} was called: only a stub"):
            call(1)
