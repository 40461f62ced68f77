"""Best of N: a policy answers each question 16 times, the reward model picks, and the truth says how well.

python -m examples.best_of_n                                       tiny models, a minute on a CPU
python -m examples.best_of_n --url http://HOST:8000 --policy Qwen/Qwen3-VL-2B-Instruct
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beholder.client import Candidates, RewardClient
from examples.measuring import TEST_SEED, mean_and_error
from examples.options import finish, parser, policy, service
from examples.policies import generate, load_policy
from examples.scenes import Item, draw

SIZES = (1, 2, 4, 8, 16)
NOTHING = -np.inf
"""The reward of an empty response, for choosing: the service gives none."""


def main() -> int:
    return finish(run, parser(__doc__).parse_args())


def run(options: argparse.Namespace) -> None:
    model, processor = load_policy(policy(options))
    items = draw(options.test, TEST_SEED)
    repeated = [item for item in items for _ in range(SIZES[-1])]
    texts = generate(model, processor, repeated, options.max_new_tokens, options.seed)
    responses = [texts[start : start + SIZES[-1]] for start in range(0, len(texts), SIZES[-1])]
    with service(options) as url, RewardClient(url, fingerprint="first") as client:
        rewards = rank(client, items, responses)
    true = np.array([[item.is_true(text) for text in group] for item, group in zip(items, responses, strict=True)])
    print(f"{len(items)} questions\n{'N':>3}  {'reward':>17}  {'true answers':>17}")
    for size in SIZES:
        best, quality = chosen(rewards, true, size)
        print(f"{size:>3}  {mean_and_error(best):>17}  {mean_and_error(quality):>17}")


def rank(client: RewardClient, items: Sequence[Item], responses: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """The reward of each response, (questions, N)."""
    rewards = np.full((len(responses), len(responses[0])), NOTHING)
    places = [[index for index, text in enumerate(group) if text.strip()] for group in responses]
    asked = [number for number, indices in enumerate(places) if indices]
    sets = [
        Candidates(items[number].messages, [items[number].image], [responses[number][i] for i in places[number]])
        for number in asked
    ]
    for number, ranking in zip(asked, client.rank_many(sets, progress=True), strict=True):
        rewards[number, places[number]] = ranking.scores
    return rewards


def chosen(
    rewards: NDArray[np.float64], true: NDArray[np.bool_], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reward and truth of the best of each question's first `size` responses; questions without a reward drop out."""
    best = rewards[:, :size].argmax(1)
    rows = np.arange(len(best))
    scored = rewards[rows, best] > NOTHING
    return rewards[rows, best][scored], true[rows, best][scored].astype(float)


if __name__ == "__main__":
    sys.exit(main())
