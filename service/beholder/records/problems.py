"""What can be wrong with a record of preference data, by a stable name, and the counts of what was found.

Reading, checking and training all speak of problems in these terms; nothing is left out without one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from beholder.errors import DataError

KINDS = {
    "not-json": "the line is not JSON",
    "not-utf8": "the line is not UTF-8 text",
    "not-an-object": "the record is not a JSON object",
    "unknown-layout": "none of the known layouts",
    "missing-prompt": "no prompt, or an empty one",
    "missing-response": "no chosen, rejected or other responses, or not texts",
    "bad-conversation": "a conversation that is not one question and one answer, or two with different questions",
    "mismatched-completions": "responses and annotations of different number",
    "empty-response": "a response without text",
    "duplicate-response": "the same response twice",
    "non-numeric-rating": "a response without a numeric rating",
    "bad-best": "'best' is no index of a response",
    "ties-only": "no two responses of different quality",
    "invalid-text": "text that is not valid Unicode",
    "rewritten-text": "text that the base's chat template rewrites, such as thoughts",
    "bad-image-field": "images that are neither paths nor bytes, or <image> between the words of a prompt",
    "unknown-image-field": "an image under a name that is not known, or a video, audio or frames",
    "missing-image": "an image file that does not exist",
    "unreadable-image": "an image that cannot be decoded",
    "too-large-image": "an image above the limits",
    "too-long": "a prompt that exceeds max_length with its images and a response",
    "unexpected": "anything else that reading or encoding raises",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `where` is file:line; `kind` a key of KINDS; `fatal` when the record cannot be used at all,
    otherwise a response of it is left out."""

    where: str
    kind: str
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.message}"


class BadRecord(DataError):
    """A record that cannot be used; str() is `where: message`."""

    def __init__(self, where: str, kind: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.problem = Problem(where, kind, message)


def counts(problems: Sequence[Problem]) -> str:
    """ "3 missing-image, 1 not-json", the most frequent first."""
    found = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count} {kind}" for kind, count in found.most_common())
