"""The attempts of one call: which replica next, and how long to wait before. Pure but for the clock and the dice."""

import random
import time
from collections.abc import Sequence
from typing import Final

from beholder.client.answers import Failed
from beholder.client.replicas import Replica

FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 10.0


def wait_s(round_number: int, retry_after_s: float = 0) -> float:
    """Before round `round_number` + 1: doubling, half to all of it so that clients do not return together, and never
    before Retry-After."""
    doubled = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(round_number, 60))
    return retry_after_s + doubled * random.uniform(0.5, 1)


class Attempts:
    """Goes through `order` once and then up to `retries` times (None: without end); another replica is asked at once,
    the same one again only after a wait."""

    def __init__(self, order: Sequence[Replica], retries: int | None) -> None:
        self._order = order
        self._retries = retries
        self._asked: list[str] = []
        self._not_before: dict[str, float] = {}
        self._round = 0
        self.made = 0
        self.last: Failed | None = None

    def next(self) -> Replica:
        """The first that was not asked in this round; those that asked for a rest, or are down, come last."""
        replica = self._upcoming()
        self._asked.append(replica.name)
        self.made += 1
        return replica

    def wait_s(self, failed: Failed) -> float | None:
        """How long to wait before `next`, after `failed` came of the last; None when there is no further attempt."""
        self.last = failed
        self._not_before[self._asked[-1]] = time.monotonic() + failed.retry_after_s
        if any(self._rest_s(replica) == 0 for replica in self._left()):
            return 0.0
        if self._round == self._retries:
            return None
        self._asked.clear()
        self._round += 1
        return wait_s(self._round - 1, self._rest_s(self._upcoming()))

    def _upcoming(self) -> Replica:
        return min(self._left(), key=lambda replica: (self._rest_s(replica), replica.down))

    def _left(self) -> list[Replica]:
        return [replica for replica in self._order if replica.name not in self._asked]

    def _rest_s(self, replica: Replica) -> float:
        """What is left of its Retry-After."""
        return max(0.0, self._not_before.get(replica.name, 0.0) - time.monotonic())
