"""Tiny wheels, written without a build backend: a second name for a distribution, or a requirement left out on purpose.

A stub without modules is metadata alone. One with modules lets an engine import them; what they hold cannot be used.

Passing their file paths to pip pins them: no index can offer a newer release in their place.
"""

import base64
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDER = Path(__file__).with_name("placeholder.py")


@dataclass(frozen=True)
class Stub:
    """A distribution that pip counts as installed."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()  # dotted names that can be imported, see placeholder.py


def write_wheel(stub: Stub, folder: Path) -> Path:
    """The stub's wheel in `folder`; equal stubs give equal bytes."""
    stem = f"{stub.name.replace('-', '_')}-{stub.version}"
    info = f"{stem}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {stub.name}", f"Version: {stub.version}", "Summary: local stub"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in stub.requires]
    files = {
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: stub_wheels\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    text = f"{PLACEHOLDER.read_text()}\n\n__version__ = {stub.version!r}\n"
    files |= {f"{module.replace('.', '/')}/__init__.py": text for module in stub.modules}
    record = [f"{name},{_digest(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"

    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)  # a bare ZipInfo has a fixed date
    return path


def _digest(text: str) -> str:
    """The file's digest as a wheel's RECORD wants it: URL-safe base64 without padding."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return "sha256=" + digest.rstrip(b"=").decode()
