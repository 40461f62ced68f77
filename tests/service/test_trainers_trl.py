"""The reward functions inside of the real GRPO and RLOO trainers of TRL, for a step with a tiny policy that sees."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from beholder.errors import BeholderError
from beholder.trainers import trl as adapter
from tests.service.asked import Recorder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of what TRL and its dependencies warn is not our concern
]
GENERATIONS = 4
COLOURS = ("red", "blue")


@pytest.fixture(scope="module")
def policy(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On disk, since TRL loads the reference from where the policy came from."""
    from examples.policies import load_policy

    folder = tmp_path_factory.mktemp("policy")
    for part in load_policy(str(tiny_base)):
        part.save_pretrained(folder)
    return folder


def rows(column: str) -> list[dict[str, Any]]:
    """Two questions about pictures, which are in the column `image` or, as lists, in `images`."""
    pictures = [Image.new("RGB", (32, 32), colour) for colour in COLOURS]
    parts = [{"type": "image"}, {"type": "text", "text": "Colour?"}]
    prompt = [{"role": "user", "content": parts}]
    return [{"prompt": prompt, column: picture if column == "image" else [picture]} for picture in pictures]


def trainer(kind: str, policy: Path, output: Path, rewards: Any, column: str = "image") -> Any:
    import trl
    from datasets import Dataset

    from examples.policies import load_policy

    model, processor = load_policy(str(policy))
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(output),
        max_steps=1,
        per_device_train_batch_size=len(COLOURS) * GENERATIONS,
        num_generations=GENERATIONS,
        max_completion_length=6,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    return getattr(trl, f"{kind}Trainer")(
        model=model,
        processing_class=processor,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list(rows(column)),
    )


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
@pytest.mark.parametrize(
    ("make", "column"), [(adapter.reward_function, "image"), (adapter.async_reward_function, "images")]
)
def test_a_step_scores_every_completion_with_its_picture(
    policy: Path, tmp_path: Path, kind: str, make: Any, column: str
) -> None:
    service = Recorder()
    run = trainer(kind, policy, tmp_path, make(service.settings(failed="none")), column)
    run.train()
    assert len(service.bodies) == len(COLOURS) * GENERATIONS
    sent = [body["images"][0]["sha256"] for body in service.bodies]
    assert sorted(sent.count(image) for image in set(sent)) == [GENERATIONS] * len(COLOURS)
    (part, text) = service.bodies[0]["messages"][0]["content"]
    assert (part, text) == ({"type": "image"}, {"type": "text", "text": "Colour?"})
    by_response = {body["response"]: float(len(body["response"])) for body in service.bodies}
    assert set(run._logs["rewards"]["beholder"]) == set(by_response.values())


def test_trl_itself_takes_no_string_with_images(policy: Path, tmp_path: Path) -> None:
    """So a string that arrives with images is no prompt of a user: the adapter refuses it."""
    from datasets import Dataset

    service = Recorder()
    for kind in ("GRPO", "RLOO"):
        run = trainer(kind, policy, tmp_path, adapter.reward_function(service.settings()))
        run.train_dataset = Dataset.from_list([{**row, "prompt": "Colour?"} for row in rows("image")])
        with pytest.raises(ValueError, match="conversational prompts"):
            run.train()


def test_the_column_of_the_prompt_reaches_the_function(policy: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    service = Recorder()
    run = trainer("GRPO", policy, tmp_path, adapter.reward_function(service.settings(failed="none")))
    asked = "<image>Which colour?"
    run.train_dataset = Dataset.from_list([{**row, "beholder_prompt": asked} for row in rows("image")])
    run.train()
    contents = [body["messages"][0]["content"] for body in service.bodies]
    assert contents == [[{"type": "image"}, {"type": "text", "text": "Which colour?"}]] * len(COLOURS) * GENERATIONS


def test_a_sample_that_fails_ends_the_run_by_default(policy: Path, tmp_path: Path) -> None:
    service = Failing()
    with pytest.raises(BeholderError):
        trainer("GRPO", policy, tmp_path, adapter.reward_function(service.settings())).train()


class Failing(Recorder):
    """Refuses the first sample of all."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and not self.bodies:
            self.bodies.append({})
            return httpx.Response(422, json={"code": "empty-response", "detail": "refused"})
        return super().__call__(request)


def varied(prompts: list[Any], **columns: Any) -> list[float]:
    """A second reward function: 10, 11, 12, ..."""
    return [10.0 + number for number in range(len(prompts))]


def test_alone_a_none_leaves_its_sample_out(policy: Path, tmp_path: Path) -> None:
    run = trainer("GRPO", policy, tmp_path, adapter.reward_function(Failing().settings(failed="none")))
    run.train()
    rewards, advantages = list(run._logs["rewards"]["beholder"]), list(run._logs["advantages"])
    assert rewards[0] != rewards[0], "nan"
    assert advantages[0] == 0
    others = rewards[1:GENERATIONS]
    mean = sum(others) / len(others)
    signs = [(reward > mean) - (reward < mean) for reward in others]
    assert [(gain > 1e-6) - (gain < -1e-6) for gain in advantages[1:GENERATIONS]] == signs


def test_beside_another_reward_function_a_none_counts_as_0(policy: Path, tmp_path: Path) -> None:
    """The caveat of docs/clients.md: were the sample left out, its advantage would be 0."""
    ours = adapter.reward_function(Failing().settings(failed="none"))
    run = trainer("GRPO", policy, tmp_path, [ours, varied])
    run.train()
    rewards = [0.0, *list(run._logs["rewards"]["beholder"])[1:GENERATIONS]]
    totals = [reward + 10 + number for number, reward in enumerate(rewards)]
    mean = sum(totals) / GENERATIONS
    deviation = (sum((total - mean) ** 2 for total in totals) / (GENERATIONS - 1)) ** 0.5
    expected = [(total - mean) / (deviation + 1e-4) for total in totals]
    advantages = list(run._logs["advantages"])[:GENERATIONS]
    assert advantages == pytest.approx(expected, abs=1e-3)
    assert advantages[0] != 0
