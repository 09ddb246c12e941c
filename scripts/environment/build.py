"""Build one engine's virtual environment: stub wheels, pinned lists, then this repository's own packages.

Two stamps in the environment hold digests of what it was made from: `.installed`, written when all lists are installed,
and `.complete`, written last. An environment whose `.installed` is missing or differs is thrown away and made again; if
only `.complete` is or does, the local packages are installed again. A half-built environment is never used.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

from .engines import Engine
from .stub_wheels import write_wheel

LISTS = Path(__file__).resolve().parent
ROOT = LISTS.parents[1]
HEARTBEAT = 10.0  # seconds between two signs of life while pip works
TAIL = 25  # lines of the log shown when a step fails


class SetupError(Exception):
    """One line for the user: found, expected, fix."""


def build(engine: Engine) -> Path:
    """Make `.venv-<engine>` complete and return it; does only what is still to be done."""
    if sys.version_info[:2] not in engine.pythons:
        names = [f"python{major}.{minor}" for major, minor in engine.pythons]
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"found Python {found}, expected {' or '.join(names)}: run `{names[0]} {' '.join(sys.argv)}`")
    folder = ROOT / f".venv-{engine.name}"
    installed, complete = folder / ".installed", folder / ".complete"
    with _only_one_at_a_time() as lock:
        lists = _lists_digest(engine, folder)
        everything = lists + _local_digest(engine)
        if _read(complete) == everything:
            print(f"{folder.name} is complete")
            return folder
        complete.unlink(missing_ok=True)
        builder = _Builder(engine, folder, lock)
        if _read(installed) != lists:
            builder.make_environment()
            installed.write_text(lists)
        builder.install_local_packages()
        builder.check()
        complete.write_text(everything)
        builder.say(f"{folder.name} is complete; use {folder.name}/bin/python, or: source {folder.name}/bin/activate")
    return folder


class _Builder:
    """The steps, each announced with the seconds since the start; what pip says goes to the log."""

    def __init__(self, engine: Engine, folder: Path, lock: int) -> None:
        self.engine = engine
        self.folder = folder
        self.lock = lock
        self.log = folder / "setup.log"
        self.start = time.monotonic()

    def make_environment(self) -> None:
        if self.folder.exists():
            self.say(f"removing {self.folder.name}, which is unfinished or out of date")
            shutil.rmtree(self.folder)
        self.say(f"making {self.folder.name} (a few minutes, 2.9 to 3.9 GB; log: {self.folder.name}/setup.log)")
        venv.create(self.folder, with_pip=True, symlinks=True)

        self.say(f"looking for {self.engine.probe}")
        self._pip(
            "install", "--dry-run", "--no-deps", self.engine.probe,
            failure=f"found no {self.engine.probe}, expected it from pip's package indexes: add PyTorch's CPU wheel "
            "index to pip's settings (environment variable PIP_EXTRA_INDEX_URL, or `pip config set "
            "global.extra-index-url`) and run this again",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            stubs = [str(write_wheel(stub, Path(scratch))) for stub in self.engine.stubs]
            for step in self.engine.steps:
                self.say(f"installing what {step.requirements} lists")
                options = [option.format(lists=LISTS) for option in step.options]
                self._pip("install", *stubs, "--requirement", str(LISTS / step.requirements), *options)
                stubs = []

    def install_local_packages(self) -> None:
        self.say(f"installing this repository's packages: {', '.join(self.engine.local_packages)}")
        editable = [word for package in self.engine.local_packages for word in ("--editable", str(ROOT / package))]
        self._pip("install", "--no-deps", "--no-build-isolation", *editable)

    def check(self) -> None:
        self.say(f"checking: python {' '.join(self.engine.check)}")
        self._run(*self.engine.check)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", flush=True)

    def _pip(self, *arguments: str, failure: str | None = None) -> None:
        self._run("-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, failure=failure)

    def _run(self, *arguments: str, failure: str | None = None) -> None:
        """Run the environment's python, its output appended to the log, the log's last line shown now and then."""
        with self.log.open("ab") as log:
            # The child keeps the lock too: if this script is killed, the next one waits until pip has ended.
            process = subprocess.Popen(
                [str(self.folder / "bin" / "python"), *arguments],
                stdout=log, stderr=subprocess.STDOUT, pass_fds=(self.lock,), env=_clean_environment(),
            )  # fmt: skip
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(HEARTBEAT)
                    break
                self.say(f"  {self._log_lines(1)[0][:100]}")
        if code:
            print("\n".join(["  | " + line for line in self._log_lines(TAIL)]), file=sys.stderr)
            raise SetupError(failure or f"found exit code {code}, expected 0: read {self.log.relative_to(ROOT)}")

    def _log_lines(self, count: int) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()[-count:] or [""]


def _read(stamp: Path) -> str | None:
    return stamp.read_text() if stamp.exists() else None


def _lists_digest(engine: Engine, folder: Path) -> str:
    """Of the scripts, the engine's lists, the Python version, and the path (an environment cannot be moved)."""
    lists = [word.format(lists=LISTS) for step in engine.steps for word in (step.requirements, *step.options)]
    files = {LISTS.parent / "setup", *LISTS.glob("*.py"), *(LISTS / name for name in lists if (LISTS / name).is_file())}
    return _digest([repr(sys.version_info[:3]), str(folder)], files)


def _local_digest(engine: Engine) -> str:
    """Of the local packages' metadata; their code is installed editable and needs no reinstall."""
    return _digest([], {ROOT / package / "pyproject.toml" for package in engine.local_packages})


def _digest(words: list[str], files: set[Path]) -> str:
    digest = hashlib.sha256("\n".join(words).encode())
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _clean_environment() -> dict[str, str]:
    """Without what would make the new environment's python look elsewhere for its packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


@contextlib.contextmanager
def _only_one_at_a_time() -> Iterator[int]:
    """Hold a lock on the folder of the lists itself: no lock file is left behind. Yields its file descriptor."""
    descriptor = os.open(LISTS, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another setup is running; waiting for it to end", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
