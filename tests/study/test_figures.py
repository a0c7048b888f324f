"""What figures show is what the analysis says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from smidgen.statistics.anova import anova
from smidgen.statistics.config import AnovaConfig
from smidgen.study.figures import residuals
from tests.statistics.designs import crossed


@pytest.fixture(scope="module")
def document():
    return anova(crossed([[2, 3], [3, 2]]), AnovaConfig(metric="y", factors="a,b", blocks="k"))


def points(figure, panel):
    """The coordinates of a panel's points, (N,) and (N,)."""
    (line,) = [one for one in figure.axes[panel].lines if one.get_marker() == "o"]
    return line.get_xdata(), line.get_ydata()


def test_the_residual_plot_shows_those_of_the_model_that_is_told(document):
    words, figure = residuals(document)
    told = document["assumptions"]["residuals"]
    fitted, left = points(figure, 0)
    np.testing.assert_array_equal(fitted, told["fitted"])
    np.testing.assert_array_equal(left, told["residuals"])
    assert "residuals of y" in words


def test_beside_them_each_stands_at_the_normal_quantile_of_its_rank(document):
    quantiles, ordered = points(residuals(document)[1], 1)
    np.testing.assert_array_equal(
        ordered, sorted(document["assumptions"]["residuals"]["residuals"])
    )
    count = len(ordered)
    ranks = np.arange(1, count + 1)
    places = (ranks - 0.3175) / (count + 0.365)  # Filliben 1975
    places[0], places[-1] = 1 - 0.5 ** (1 / count), 0.5 ** (1 / count)
    np.testing.assert_allclose(quantiles, norm.ppf(places), atol=1e-9)
