import math

import numpy as np
import pytest

from evaluation.compare import mean_interval


def test_interval_of_a_share_is_the_textbooks():
    mean, half = mean_interval(np.array([1.0] * 20 + [0.0] * 80))
    assert mean == 0.2
    assert half == pytest.approx(1.959964 * math.sqrt(0.2 * 0.8 / 99))


def test_one_user_has_no_interval():
    mean, half = mean_interval(np.array([0.5]))
    assert mean == 0.5
    assert math.isnan(half)
