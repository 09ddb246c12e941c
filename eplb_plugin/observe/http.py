"""Asking a running server over HTTP: every failure is one line that names the address."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from ..errors import PluginError, mismatch

SECONDS = 60.0  # a server that computes answers late
LARGEST = 16 * 2**20  # bytes of an answer


def ask(url: str, path: str, api_key: str | None = None) -> bytes:
    """GET url + path. Raises PluginError if there is no answer, or one that says no."""
    if not url.startswith(("http://", "https://")):
        raise mismatch("--url", found=url, expected="http://host:port", fix="write the server's address")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        request = urllib.request.Request(url.rstrip("/") + path, headers=headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            data: bytes = answer.read(LARGEST)
            return data
    except urllib.error.HTTPError as error:
        fix = "pass --api-key" if error.code in (401, 403) else "check the address and the engine's release"
        raise mismatch(f"{url}{path}", found=f"HTTP status {error.code}", expected="200", fix=fix) from None
    except (OSError, ValueError, HTTPException) as error:  # ValueError: no valid address
        reason = getattr(error, "reason", error)
        raise PluginError(f"{url}{path}: no answer ({reason}); fix: start the server, or correct the address") from None


def ask_json(url: str, path: str, api_key: str | None = None) -> dict[str, Any] | None:
    """The JSON object at that path; None where there is none."""
    try:
        found = json.loads(ask(url, path, api_key))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
