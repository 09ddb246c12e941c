"""Families of loads: even at spread 0, steeper with it, and found again in loads that were drawn from them."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.workloads.families import FAMILIES, checked_family, fit

NAMES = sorted(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_shares_are_shares_and_grow_with_the_spread(name: str) -> None:
    """Largest first, positive, sum 1; even at 0; the largest share never falls as the spread grows."""
    family = FAMILIES[name]
    curves = [family.shares(spread, 64) for spread in np.linspace(0.0, family.most, 60)]
    for shares in curves:
        assert shares.sum() == pytest.approx(1.0)
        assert (shares >= 0.0).all()
        assert (np.diff(shares) <= 1e-12).all()
    np.testing.assert_allclose(curves[0], 1.0 / 64)
    assert (np.diff([shares[0] for shares in curves]) > 0.0).all()


@pytest.mark.parametrize("spread", [0.019, 0.021, 0.3, 0.999, 1.001, 3.0])
def test_gamma_quantiles_are_those_of_drawn_loads(spread: float) -> None:
    """Against numpy's own gamma draws: the quantiles of 400 000 of them, within what drawing leaves."""
    drawn = np.random.default_rng(0).gamma(spread**-2, size=400_000)
    expected = np.quantile(drawn, (np.arange(50)[::-1] + 0.5) / 50)
    np.testing.assert_allclose(FAMILIES["gamma"].shares(spread, 50), expected / expected.sum(), rtol=0.04, atol=2e-4)


def test_lognormal_quantiles_are_those_of_drawn_loads() -> None:
    drawn = np.exp(0.9 * np.random.default_rng(0).standard_normal(400_000))
    expected = np.quantile(drawn, (np.arange(50)[::-1] + 0.5) / 50)
    np.testing.assert_allclose(FAMILIES["lognormal"].shares(0.9, 50), expected / expected.sum(), rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", [0.0, 0.4, 1.3])
def test_fit_finds_the_family_and_its_spread(name: str, spread: float) -> None:
    """Loads of a family, in any order and unit, are fitted best by that family, at their own spread."""
    shares = np.random.default_rng(1).permutation(FAMILIES[name].shares(spread, 96)) * 1e5
    fits = {other: fit(shares[None], FAMILIES[other]) for other in NAMES}
    assert fits[name].spread[0] == pytest.approx(spread, abs=0.002)
    assert fits[name].sse[0] < 1e-3
    if spread > 0.0:
        assert min(fits, key=lambda other: fits[other].sse[0]) == name


def test_bad_input_is_one_line() -> None:
    with pytest.raises(PluginError, match="family: found 'weibull'"):
        checked_family("weibull")
    with pytest.raises(PluginError, match="a layer without any"):
        fit([[1.0, 2.0], [0.0, 0.0]], FAMILIES["gamma"])
