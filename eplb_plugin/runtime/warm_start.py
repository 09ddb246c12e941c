"""Beginning where an earlier run ended, or with the placement that the user names: the same on every rank."""

from __future__ import annotations

import logging
from typing import Any

import torch.distributed as dist

from ..deployment import Deployment
from ..errors import PluginError
from ..placement import Placement
from ..settings.config import PluginConfig
from .state_directory import Earlier, StateDirectory, read_placement

logger = logging.getLogger("eplb_plugin")


def earlier(config: PluginConfig, deployment: Deployment, group: dist.ProcessGroup, draft: bool = False) -> Earlier:
    """Collective over a CPU group: rank 0 reads its files; every rank gets the placement, rank 0 the window too.

    What is in the state directory and does not fit is left alone with a line in the log. Raises PluginError, on every
    rank, if `initial_placement` does not fit. draft: of a draft model, which `initial_placement` is not meant for.
    """
    if config.state_directory is None and (config.initial_placement is None or draft):
        return Earlier()
    found = Earlier()
    sent: list[Any] = [None, None]
    if dist.get_rank(group) == 0:
        found, *sent = _read(config, deployment, draft)
    dist.broadcast_object_list(sent, src=dist.get_global_rank(group, 0), group=group)
    placement, problem = sent
    if problem is not None:
        raise PluginError(f"initial_placement: {problem}")
    return Earlier(placement, found.window)


def _read(config: PluginConfig, deployment: Deployment, draft: bool) -> tuple[Earlier, Placement | None, str | None]:
    """On rank 0: never raises, because the other ranks wait for the answer."""
    found = Earlier()
    if config.state_directory is not None:
        found = StateDirectory(config.state_directory).earlier(deployment)
    placement, source = found.placement, config.state_directory
    try:
        if config.initial_placement is not None and not draft:
            placement, _ = read_placement(config.initial_placement, deployment)
            source = config.initial_placement
    except PluginError as error:
        return found, None, str(error)
    if placement is not None:
        logger.info("%s begins with the placement of %s", deployment.model, source)
    return found, placement, None
