"""Python's garbage collector in a service: it walks neither what is loaded for good nor what is in flight.

Four thousand requests are half a million objects, which it takes a third of a second to walk, while nobody is answered;
it finds nothing, since neither answers nor refusals leave cycles behind. So it comes when nothing is in flight.
"""

import gc
from typing import Final

THRESHOLDS: Final = (2_000_000, 10, 10)
"""For a service that is never idle: a few hundred megabytes of small objects."""
WORTHWHILE: Final = 20_000
"""New objects, as many as a few hundred requests make."""


def relieve() -> None:
    """Once everything is loaded: libraries and engine, a million objects, are not walked again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def collect_while_idle() -> None:
    """Walk what is new since the last time, where it is much. For when nothing is in flight."""
    if gc.get_count()[0] > WORTHWHILE:
        gc.collect(1)
