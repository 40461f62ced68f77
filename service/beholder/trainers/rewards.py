"""What the trainers' functions share: settings from the environment, and samples to rewards.

BEHOLDER_URL              base URL of the service, or several between commas
BEHOLDER_API_KEY
BEHOLDER_MODEL            name or fingerprint of one of the service's several models (default: its first)
BEHOLDER_FINGERPRINT      pin this checkpoint; `first` pins that of the first answer
BEHOLDER_REWARD           score (default, the raw logit) or normalized
BEHOLDER_FAILED           raise (default) or none: what a sample gets that cannot be scored
BEHOLDER_DEADLINE_S       seconds for one sample, retries included (default 300)
BEHOLDER_MAX_CONCURRENCY  samples in flight from one process (default 32)

`conversations` reads one more: BEHOLDER_END_OF_TURN, for OpenRLHF and slime.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Literal, cast

import httpx

from beholder.client import AsyncRewardClient, Options, RewardClient, Sample, Score
from beholder.errors import BeholderError, ConfigurationError, FingerprintMismatch, Unauthorized

Reward = float | None
_OF_THE_RUN: Final = (ConfigurationError, FingerprintMismatch, Unauthorized)
"""Errors that are no sample's own: they raise whatever `failed` says."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """`failed` "none" gives None to a sample that cannot be scored, unless none of a call can be.

    Beside a second reward function TRL counts a None as 0, which is an invented reward: prefer "raise" there.
    """

    urls: tuple[str, ...] = field(repr=False)  # a key may stand in one
    api_key: str | None = field(default=None, repr=False)
    fingerprint: str | None = None
    reward: Literal["score", "normalized"] = "score"
    failed: Literal["raise", "none"] = "raise"
    deadline_s: float = 300
    max_concurrency: int = 32
    transport: httpx.AsyncBaseTransport | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigurationError."""
        for name, allowed in (("reward", ("score", "normalized")), ("failed", ("raise", "none"))):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"BEHOLDER_{name.upper()}: {getattr(self, name)!r} is none of {allowed}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "RewardSettings":
        """Raises ConfigurationError."""

        def value(name: str, default: str = "") -> str:
            return environment.get(f"BEHOLDER_{name}", "").strip() or default

        urls = tuple(url.strip() for url in value("URL").split(",") if url.strip())
        if not urls:
            raise ConfigurationError("set BEHOLDER_URL to the service, such as http://127.0.0.1:8000")
        try:
            return cls(
                urls,
                value("API_KEY") or None,
                value("FINGERPRINT") or None,
                cast(Literal["score", "normalized"], value("REWARD", "score")),
                cast(Literal["raise", "none"], value("FAILED", "raise")),
                float(value("DEADLINE_S", "300")),
                int(value("MAX_CONCURRENCY", "32")),
                model=value("MODEL") or None,
            )
        except ValueError as error:
            raise ConfigurationError(f"BEHOLDER_DEADLINE_S, BEHOLDER_MAX_CONCURRENCY: {error}") from None

    @property
    def options(self) -> Options:
        return {
            "api_key": self.api_key,
            "fingerprint": self.fingerprint,
            "model": self.model,
            "deadline_s": self.deadline_s,
            "max_concurrency": self.max_concurrency,
            "transport": self.transport,
        }


class Rewarder:
    """Rewards of many samples at a time, in order; for code with and without an event loop."""

    def __init__(self, settings: RewardSettings) -> None:
        self.settings = settings
        self._sync = RewardClient(settings.urls, **settings.options)
        self._async = AsyncRewardClient(settings.urls, **settings.options)

    def rewards(self, samples: Sequence[Sample]) -> list[Reward]:
        """Raises BeholderError."""
        if self.settings.failed == "raise":
            return self._values(self._sync.score_many(samples))
        return self._values(self._sync.try_score_many(samples))

    async def async_rewards(self, samples: Sequence[Sample]) -> list[Reward]:
        """Raises BeholderError."""
        if self.settings.failed == "raise":
            return self._values(await self._async.score_many(samples))
        return self._values(await self._async.try_score_many(samples))

    def _values(self, results: Sequence[Score | BeholderError]) -> list[Reward]:
        errors = [result for result in results if isinstance(result, BeholderError)]
        serious = next((error for error in errors if isinstance(error, _OF_THE_RUN)), None)
        if serious or (errors and len(errors) == len(results)):
            raise serious or errors[0]
        for error in errors:
            _log.warning("a sample has no reward: %s", error)
        return [None if isinstance(result, BeholderError) else self._value(result) for result in results]

    def _value(self, score: Score) -> float:
        if self.settings.reward == "score":
            return score.score
        if score.normalized is None:
            raise ConfigurationError("the checkpoint is not calibrated: BEHOLDER_REWARD must be score")
        return score.normalized


@cache
def default_rewarder() -> Rewarder:
    """That of the environment, one a process."""
    return Rewarder(RewardSettings.from_environment())
