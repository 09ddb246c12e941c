"""Process groups as engines make them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from eplb_plugin.doctor.groups import alone, carriers
from eplb_plugin.doctor.site import Site


def test_a_process_alone_has_a_group_for_as_long_as_it_needs_one() -> None:
    """Also where what is done in it fails."""
    with alone():
        assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
    with pytest.raises(ValueError, match="broken"), alone():
        raise ValueError("broken")
    assert not dist.is_initialized()


def test_rows_and_votes_have_groups_of_their_own() -> None:
    """One pair for every backend of the site, made once for a site; votes are on the CPU."""
    site = Site(torch.device("cpu"))
    with alone():
        (one,) = carriers(site)
        assert one.name == dist.get_backend(one.rows) == dist.get_backend(one.votes) == "gloo"
        assert one.rows is not one.votes
        assert carriers(site)[0] is one
        assert carriers(Site(torch.device("cpu")))[0] is not one
