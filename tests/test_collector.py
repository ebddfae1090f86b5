from __future__ import annotations

import gc
import sys

import pytest

from luthier.collector import resting_collector


@pytest.fixture
def first_import(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("first_import")
def test_nothing_is_collected_while_libraries_are_imported():
    with resting_collector():
        assert not gc.isenabled()

    assert gc.isenabled()


@pytest.mark.usefixtures("first_import")
def test_what_was_imported_is_never_looked_through_again():
    before = gc.get_freeze_count()

    with resting_collector():
        kept = [[] for _ in range(1000)]

    assert gc.get_freeze_count() - before > len(kept)


@pytest.mark.usefixtures("first_import")
def test_the_collector_works_again_after_an_import_that_failed():
    with pytest.raises(ImportError), resting_collector():
        raise ImportError("no such library")

    assert gc.isenabled()


@pytest.mark.usefixtures("first_import")
def test_a_caller_who_switched_the_collector_off_keeps_it_off():
    gc.disable()
    try:
        with resting_collector():
            pass

        assert not gc.isenabled()
    finally:
        gc.enable()


def test_garbage_of_an_earlier_run_stays_collectable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    before = gc.get_freeze_count()

    with resting_collector():
        assert gc.isenabled()

    assert gc.get_freeze_count() == before
