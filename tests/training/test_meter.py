"""speed between two readings, with a clock that the test turns"""

from luthier.training.meter import Meter, Speed


def test_the_speed_is_that_since_the_last_reading_without_the_pauses():
    times = iter([0.0, 3.0, 5.0, 10.0, 14.0])
    meter = Meter(lambda: next(times))

    meter.count(400, 8000)
    with meter.paused():
        pass
    first = meter.read()
    meter.count(100, 1000)
    meter.count(100, 3000)
    second = meter.read()

    assert first == Speed(400 / 8, 8000 / 8)
    assert second == Speed(200 / 4, 4000 / 4)
