"""tokens per second, with a clock that the test turns"""

from luthier.training.meter import Meter


def test_the_rate_is_that_since_the_last_reading_without_the_pauses():
    times = iter([0.0, 3.0, 5.0, 10.0, 14.0])
    meter = Meter(lambda: next(times))

    meter.count(400)
    with meter.paused():
        pass
    first = meter.rate()
    meter.count(100)
    meter.count(100)
    second = meter.rate()

    assert first == 400 / 8
    assert second == 200 / 4
