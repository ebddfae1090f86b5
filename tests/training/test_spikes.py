"""which losses stand out, and which do not"""

import math
import random

import pytest

from luthier.training.nonfinite import FEWEST, SpikeWatch


def told(losses, watch=None):
    watch = watch or SpikeWatch()
    return [at for at, loss in enumerate(losses) if watch.see(loss) is not None]


def falling(count, seed, noise=0.15):
    """A usual curve: down to a floor, with noise that is a share of the loss."""
    draw = random.Random(seed)
    return [(1 + 9 * math.exp(-at / 20)) * draw.lognormvariate(0, noise) for at in range(count)]


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15, 0.3])
def test_usual_curves_give_no_alarm(noise):
    assert [told(falling(400, seed, noise)) for seed in range(20)] == [[]] * 20


def test_a_jump_is_told_once_and_the_next_one_again():
    losses = falling(200, seed=1)
    losses[80] = losses[195] = 30.0
    assert told(losses) == [80, 195]

    losses[100:130] = [30.0 + n / 10 for n in range(30)]
    assert told(losses) == [80, 100, 195]


def test_nothing_is_said_of_the_first_losses_and_of_those_that_are_none():
    losses = [1.0] * (FEWEST - 1) + [50.0] + [1.0] * 30
    assert told(losses) == []
    assert told([1.0] * 30 + [math.nan, math.inf]) == []


def test_a_level_curve_allows_a_third_more():
    assert told([1.0] * 40 + [1.29]) == []
    assert told([1.0] * 40 + [1.4]) == [40]


def test_a_watch_goes_on_where_another_one_stood():
    losses = falling(120, seed=3)
    first = SpikeWatch()
    told(losses[:60], first)

    assert told([*losses[60:], 40.0], SpikeWatch(first.losses)) == [60]
