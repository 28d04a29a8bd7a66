"""`ByteLRU`: what is kept, what makes room, and what is counted."""

from __future__ import annotations

import pytest

from tamis.cache import ENTRY_BYTES, ByteLRU

ROOM = 3 * (ENTRY_BYTES + 10)


@pytest.fixture
def full():
    """A cache that has room for three values of 10 bytes, and has them."""
    cache = ByteLRU(ROOM)
    for key in "abc":
        cache.put(key, key.upper(), 10)
    return cache


def test_filled_to_the_byte(full):
    assert full.size == full.limit
    assert full.items() == [("a", "A"), ("b", "B"), ("c", "C")]


def test_the_oldest_makes_room_and_reading_makes_young(full):
    assert full.get("a") == "A"
    full.put("d", "D", 10)
    assert [key for key, _ in full.items()] == ["c", "a", "d"]
    assert (full.get("b"), full.hits, full.misses) == (None, 1, 1)
    assert "b" not in full
    assert "c" in full
    assert (full.hits, full.misses) == (1, 1)  # asking whether it is there is no use of it


def test_a_value_takes_as_many_places_as_it_needs(full):
    full.put("d", "D", 11)  # a byte more than one place, so that two must go
    assert [key for key, _ in full.items()] == ["c", "d"]
    assert full.size == 2 * ENTRY_BYTES + 21


def test_a_new_value_takes_the_place_of_the_old(full):
    full.put("a", "new", 4)
    assert full.items() == [("b", "B"), ("c", "C"), ("a", "new")]
    assert full.size == ROOM - 6


def test_what_is_larger_than_everything_is_not_kept_and_neither_is_what_it_replaces(full):
    full.put("a", "huge", ROOM - ENTRY_BYTES + 1)
    assert full.items() == [("b", "B"), ("c", "C")]
    assert full.size == ROOM - ENTRY_BYTES - 10
    full.put("d", "as large as everything", ROOM - ENTRY_BYTES)
    assert full.items() == [("d", "as large as everything")]


def test_who_is_told_of_what_had_to_go():
    told = []
    cache = ByteLRU(2 * (ENTRY_BYTES + 10), evicted=lambda key, value: told.append((key, value)))
    for key in "abcd":
        cache.put(key, key.upper(), 10)
    cache.put("d", "D", 10)
    assert told == [("a", "A"), ("b", "B")]


def test_forgetting_everything(full):
    full.clear()
    assert (full.items(), full.size) == ([], 0)
    full.put("a", "A", 10)
    assert full.items() == [("a", "A")]


def test_a_cache_of_nothing_keeps_nothing():
    cache = ByteLRU(0)
    cache.put("a", "A", 0)
    assert (cache.items(), cache.size) == ([], 0)
