"""Samples that the service has accepted and not scored, of all its models together, and the bound on them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from beholder.errors import InvalidRequest, Overloaded
from beholder.metrics import Metrics

READING_S: Final = 1.0
"""Seconds for which a request whose body has not arrived keeps its place: slow senders must not hold them all."""


@dataclass(slots=True, eq=False)
class Places:
    """What one request holds: a place from its arrival on, and once it was read one for each sample until all are
    scored."""

    count: int = 1


class InFlight:
    """At most `limit` places are held.

    An admitted request is not refused later, unless its body arrives too slowly or it has more samples than there are
    free places.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._held = 0
        self._accepted: dict[Places, float] = {}
        metrics.in_flight_limit.set(limit)
        metrics.oldest.set_function(self._oldest_s)

    @property
    def idle(self) -> bool:
        return not self._held

    @contextmanager
    def arrive(self) -> Iterator[Places]:
        """The places of a request, which are free again after the block. Raises Overloaded."""
        self._take(1)
        places = Places()
        reading = asyncio.get_running_loop().call_later(READING_S, self._lapse, places)
        try:
            yield places
        finally:
            reading.cancel()
            self._free(places)

    @contextmanager
    def accept(self, places: Places, samples: int) -> Iterator[None]:
        """A place for each sample of the request, until the end of the block: who is slow to take the answer holds
        none. Raises InvalidRequest, Overloaded."""
        if samples > self._limit:
            raise InvalidRequest(f"the request has {samples} samples, at most {self._limit} are accepted: split it")
        self._take(samples - places.count)
        places.count = samples
        self._accepted[places] = time.monotonic()
        try:
            yield
        finally:
            del self._accepted[places]
            self._free(places)

    def _lapse(self, places: Places) -> None:
        if places not in self._accepted:
            self._free(places)

    def _free(self, places: Places) -> None:
        self._change(-places.count)
        places.count = 0

    def _take(self, count: int) -> None:
        if self._held + count > self._limit:
            raise Overloaded(f"{self._held} samples are in flight, at most {self._limit} may be: retry")
        self._change(count)

    def _change(self, change: int) -> None:
        self._held += change
        self._metrics.in_flight.set(self._held)

    def _oldest_s(self) -> float:
        """Requests are kept in the order in which they were accepted."""
        now = time.monotonic()
        return now - next(iter(self._accepted.values()), now)
