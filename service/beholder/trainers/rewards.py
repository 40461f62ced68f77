"""What the trainers' functions share: settings from the environment, and samples to rewards.

BEHOLDER_URL              base URL of the service, or several between commas
BEHOLDER_API_KEY
BEHOLDER_MODEL            name or fingerprint of one of the service's several models (default: its first)
BEHOLDER_FINGERPRINT      pin this checkpoint; `first` pins that of the first answer
BEHOLDER_REWARD           score (default, the raw logit) or normalized
BEHOLDER_FAILED           raise (default) or none: what a sample gets that cannot be scored
BEHOLDER_DEADLINE_S       seconds for one sample, retries included (default 330)
BEHOLDER_ATTEMPT_S        seconds for one attempt; unset, nothing but the deadline ends it
BEHOLDER_MAX_CONCURRENCY  samples in flight from one process (default 32)
BEHOLDER_REASONING        keep (default) or cut: what ends with the last </think> of a response is not scored
BEHOLDER_EMPTY            your reward for an empty response, such as -10; unset, it cannot be scored

`conversations` reads one more: BEHOLDER_END_OF_TURN, for the trainers that leave special tokens in the response.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal, cast

import httpx

from beholder.client import AsyncRewardClient, Options, RewardClient, Sample, Score
from beholder.client.asynchronous import DEADLINE_S
from beholder.errors import (
    BeholderError,
    ConfigurationError,
    DataError,
    EmptyResponse,
    FingerprintMismatch,
    InvalidRequest,
    Unauthorized,
)
from beholder.trainers.conversations import without_reasoning

Reward = float | None
Reading = Sample | BeholderError
"""A sample, or why it cannot be read."""
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
    deadline_s: float = DEADLINE_S
    max_concurrency: int = 32
    transport: httpx.AsyncBaseTransport | None = None
    model: str | None = None
    reasoning: Literal["keep", "cut"] = "keep"
    empty: float | None = None
    attempt_s: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigurationError."""
        choices = {"reward": ("score", "normalized"), "failed": ("raise", "none"), "reasoning": ("keep", "cut")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"BEHOLDER_{name.upper()}: {getattr(self, name)!r} is none of {allowed}")
        if self.empty is not None and not math.isfinite(self.empty):
            raise ConfigurationError(f"BEHOLDER_EMPTY: {self.empty} is no reward: it must be finite")

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
                float(value("DEADLINE_S") or DEADLINE_S),
                int(value("MAX_CONCURRENCY", "32")),
                model=value("MODEL") or None,
                reasoning=cast(Literal["keep", "cut"], value("REASONING", "keep")),
                empty=float(value("EMPTY")) if value("EMPTY") else None,
                attempt_s=float(value("ATTEMPT_S")) if value("ATTEMPT_S") else None,
            )
        except ValueError as error:
            names = "BEHOLDER_DEADLINE_S, BEHOLDER_ATTEMPT_S, BEHOLDER_MAX_CONCURRENCY, BEHOLDER_EMPTY"
            raise ConfigurationError(f"{names}: {error}") from None

    @property
    def options(self) -> Options:
        return {
            "api_key": self.api_key,
            "fingerprint": self.fingerprint,
            "model": self.model,
            "deadline_s": self.deadline_s,
            "attempt_s": self.attempt_s,
            "max_concurrency": self.max_concurrency,
            "transport": self.transport,
        }


def read_rows(read: Callable[..., Sample], *columns: Iterable[Any]) -> list[Reading]:
    """`read` of each row of the columns; the error of a row that cannot be scored stands in its sample's place."""

    def attempt(*row: Any) -> Reading:
        try:
            return read(*row)
        except (InvalidRequest, DataError) as error:
            return error

    return [attempt(*row) for row in zip(*columns, strict=True)]


class Rewarder:
    """Rewards of many samples at a time, in order; for code with and without an event loop.

    What comes of a pickle has connections of its own, and pins what this one has pinned.
    """

    def __init__(self, settings: RewardSettings) -> None:
        self.settings = settings
        self._sync = RewardClient(settings.urls, **settings.options)
        self._async = AsyncRewardClient(settings.urls, **settings.options)

    def require_numbers(self, trainer: str) -> None:
        """For a trainer that has no place for a sample without a reward. Raises ConfigurationError."""
        if self.settings.failed != "raise":
            raise ConfigurationError(
                f"{trainer} takes a number for every sample: set BEHOLDER_FAILED=raise, or leave it out"
            )

    def rewards(self, samples: Sequence[Reading]) -> list[Reward]:
        """Raises BeholderError."""
        readings = self._prepared(samples)
        score = self._sync.score_many if self.settings.failed == "raise" else self._sync.try_score_many
        return self._values(readings, score(_read(readings)))

    async def async_rewards(self, samples: Sequence[Reading]) -> list[Reward]:
        """Raises BeholderError."""
        readings = self._prepared(samples)
        score = self._async.score_many if self.settings.failed == "raise" else self._async.try_score_many
        return self._values(readings, await score(_read(readings)))

    def _prepared(self, samples: Sequence[Reading]) -> list[Reading]:
        """What is asked for, and the errors of what is not, before anything is asked. Raises BeholderError."""
        readings = [reading if isinstance(reading, BeholderError) else self._cut(reading) for reading in samples]
        if self.settings.failed == "raise":
            for error in self._failures(readings):
                raise error
        return readings

    def _cut(self, sample: Sample) -> Reading:
        if self.settings.reasoning == "cut":
            sample = sample._replace(response=without_reasoning(sample.response))
        if not sample.response.strip():
            return EmptyResponse("the response is empty: a reward needs one, or set BEHOLDER_EMPTY to yours for it")
        return sample

    def _failures(self, results: Sequence[Any]) -> list[BeholderError]:
        """The errors among `results` for which the settings have no reward."""
        given = EmptyResponse if self.settings.empty is not None else ()
        return [result for result in results if isinstance(result, BeholderError) and not isinstance(result, given)]

    def _values(self, readings: Sequence[Reading], answers: Sequence[Score | BeholderError]) -> list[Reward]:
        left = iter(answers)
        results = [next(left) if isinstance(reading, Sample) else reading for reading in readings]
        errors = self._failures(results)
        serious = next((error for error in errors if isinstance(error, _OF_THE_RUN)), None)
        if serious or (errors and len(errors) == len(results)):
            raise serious or errors[0]
        for error in errors:
            _log.warning("a sample has no reward: %s", error)
        return [self._value(result) for result in results]

    def _value(self, result: Score | BeholderError) -> Reward:
        if isinstance(result, BeholderError):
            return self.settings.empty if isinstance(result, EmptyResponse) else None
        if self.settings.reward == "score":
            return result.score
        if result.normalized is None:
            raise ConfigurationError("the checkpoint is not calibrated: BEHOLDER_REWARD must be score")
        return result.normalized


def _read(readings: Iterable[Reading]) -> list[Sample]:
    return [reading for reading in readings if isinstance(reading, Sample)]


@cache
def default_rewarder() -> Rewarder:
    """That of the environment, one a process."""
    return Rewarder(RewardSettings.from_environment())
