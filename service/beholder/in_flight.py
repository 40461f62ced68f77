"""Samples that the service has accepted and not answered, of all its models together, and the bound on them."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

from beholder.errors import InvalidRequest, Overloaded
from beholder.metrics import Metrics


class InFlight:
    """At most `limit` samples at a time."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._count = 0
        self._accepted: dict[int, float] = {}
        self._numbers = itertools.count()
        metrics.in_flight_limit.set(limit)
        metrics.oldest.set_function(self._oldest_s)

    def require_room(self) -> None:
        """Raises Overloaded where not one more sample would be admitted."""
        if self._count >= self._limit:
            raise self._full()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Holds the places of a request's samples until the end of the block. Raises InvalidRequest, Overloaded."""
        if count > self._limit:
            raise InvalidRequest(f"the request has {count} samples, at most {self._limit} are accepted: split it")
        if self._count + count > self._limit:
            raise self._full()
        self._change(count)
        number = next(self._numbers)
        self._accepted[number] = time.monotonic()
        try:
            yield
        finally:
            del self._accepted[number]
            self._change(-count)

    def _full(self) -> Overloaded:
        return Overloaded(f"{self._count} samples are in flight, at most {self._limit} may be: retry")

    def _change(self, change: int) -> None:
        self._count += change
        self._metrics.in_flight.set(self._count)

    def _oldest_s(self) -> float:
        """Requests are kept in the order of their arrival."""
        now = time.monotonic()
        return now - next(iter(self._accepted.values()), now)
