"""The cache keeps what was used last, within its bytes."""

from beholder.lru import ByteBoundedCache


def filled(max_bytes: int, **sizes: int) -> ByteBoundedCache[str, str]:
    cache: ByteBoundedCache[str, str] = ByteBoundedCache(max_bytes)
    for key, size in sizes.items():
        cache.put(key, key.upper(), size)
    return cache


def test_the_least_recently_used_gives_way() -> None:
    cache = filled(10, a=4, b=4)
    assert cache.get("a") == "A"
    cache.put("c", "C", 4)
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"]
    assert cache.bytes == 8


def test_one_that_fits_in_no_way_costs_no_other_its_place() -> None:
    cache = filled(10, a=4, b=4)
    cache.put("c", "C", 11)
    assert [cache.get(key) for key in "abc"] == ["A", "B", None]
    assert cache.bytes == 8


def test_a_value_that_has_grown_too_large_is_not_kept_as_it_was() -> None:
    cache = filled(10, a=4, b=4)
    cache.put("a", "new", 11)
    assert (cache.get("a"), cache.get("b"), cache.bytes) == (None, "B", 4)
