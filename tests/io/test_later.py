"""Files that are written while their owner goes on: in order, and nothing that fails is passed over."""
from __future__ import annotations

import threading

import pytest

from localrefine_plugin.engine.io.later import MOST_WAITING, Later


def test_the_owner_goes_on_meanwhile_and_at_the_end_all_is_done_in_order():
    go_on, done = threading.Event(), []
    with Later() as later:
        later(go_on.wait, 10)
        for number in range(2):
            later(done.append, number)
        assert not done
        go_on.set()
    assert done == [0, 1]


def test_no_more_than_a_few_things_wait():
    started, most, running = threading.Event(), [], []

    def work(number):
        most.append(len(running))
        running.remove(number)
    with Later() as later:
        later(started.wait, 10)
        for number in range(MOST_WAITING - 1):
            running.append(number)
            later(work, number)
        threading.Timer(0.05, started.set).start()
        for number in range(10, 20):  # waits for the first
            running.append(number)
            later(work, number)
    assert not running and max(most) <= MOST_WAITING + 1


def test_what_fails_is_raised_at_the_end_or_by_the_next_call():
    def full():
        raise OSError(28, "No space left on device", "map.mrc")
    with pytest.raises(OSError, match="map.mrc"):
        with Later() as later:
            later(full)
    with pytest.raises(OSError, match="map.mrc"):
        with Later() as later:
            for _ in range(MOST_WAITING + 1):
                later(full)
            raise AssertionError("the call before should have raised")


def test_after_another_failure_nothing_more_is_begun():
    go_on, done = threading.Event(), []
    with pytest.raises(ValueError, match="its own"):
        with Later() as later:
            later(go_on.wait, 10)
            later(done.append, 1)
            threading.Timer(0.05, go_on.set).start()
            raise ValueError("its own")
    assert not done
