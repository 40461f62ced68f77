"""The attempts of one call: which replica next, and how long to wait before. Pure but for the clock and the dice."""

import random
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
    """Goes through `order` once and then up to `retries` times; another replica is asked at once, the same one again
    only after a wait."""

    def __init__(self, order: Sequence[Replica], retries: int) -> None:
        self._order = order
        self._retries = retries
        self._asked: set[str] = set()
        self._round = 0
        self.made = 0
        self.last: Failed | None = None

    def next(self) -> Replica:
        """The first that was not asked in this round; those that are down come last."""
        left = [replica for replica in self._order if replica.name not in self._asked]
        replica = next((replica for replica in left if not replica.down), left[0])
        self._asked.add(replica.name)
        self.made += 1
        return replica

    def wait_s(self, failed: Failed) -> float | None:
        """How long to wait before `next`; None when there is no further attempt."""
        self.last = failed
        if len(self._asked) < len(self._order):
            return 0.0
        if self._round == self._retries:
            return None
        self._asked.clear()
        self._round += 1
        return wait_s(self._round - 1, failed.retry_after_s)
