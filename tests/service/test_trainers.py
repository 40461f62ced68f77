"""What each trainer passes arrives at the service as the same sample, and what fails raises."""

import asyncio
import inspect
import json
import re
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from beholder.client import AsyncRewardClient, Sample
from beholder.errors import BeholderError, ConfigurationError, DataError, FingerprintMismatch, InvalidRequest
from beholder.settings import Settings
from beholder.trainers import ms_swift, openrlhf, rewards, slime, trl, verl
from beholder.trainers.rewards import Rewarder, RewardSettings, default_rewarder
from tests.service.asked import CHAT, MARKED, OTHER, PICTURE, Recorder, SlimeArguments, SlimeSample, reference


def test_trl_passes_strings_where_there_are_no_images(service: Recorder) -> None:
    reward = trl.reward_function(service.settings())
    rewards = reward(
        prompts=["Colour?", "Shape?"],
        completions=["Red.", "Blue!"],
        images=[[], []],
        completion_ids=[[1], [2]],
        trainer_state=None,
        log_extra=None,
    )
    assert rewards == [4.0, 5.0]
    assert service.contexts == [("Colour?", []), ("Shape?", [])]


@pytest.mark.parametrize("column", [{"image": [PICTURE]}, {"images": [[PICTURE]]}])
def test_trl_passes_chats_with_images_beside(service: Recorder, column: dict[str, Any]) -> None:
    reward = trl.reward_function(service.settings())
    assert reward(prompts=[CHAT], completions=[[{"role": "assistant", "content": "Red."}]], **column) == [4.0]
    assert service.contexts == [(MARKED, [reference(PICTURE)])]


def test_trl_passes_chats_with_images_inside_as_grpo_prepares_them(service: Recorder) -> None:
    """GRPOTrainer puts the column's images into the messages and passes the column as well."""
    from trl.data_utils import prepare_multimodal_messages

    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    two = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]}]
    prompts = [prepare_multimodal_messages(two, pictures)]
    completions = [[{"role": "assistant", "content": [{"type": "text", "text": "Red."}]}]]
    reward = trl.async_reward_function(service.settings())
    assert asyncio.run(reward(prompts=prompts, completions=completions, images=[pictures])) == [4.0]
    ((messages, images),) = service.contexts
    assert messages == two
    assert len(images) == len({image["sha256"] for image in images}) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"completions": [[{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]]},
        {"images": ["picture.png"]},
        {"images": [[PICTURE, PICTURE]], "prompts": [MARKED]},
        {"images": [[]], "prompts": [MARKED]},
        {"prompts": [[{"role": "user", "content": [{"type": "video", "video": "x"}]}]]},
    ],
)
def test_trl_what_would_have_to_be_guessed_raises(service: Recorder, row: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        trl.reward_function(service.settings())(**{"prompts": [CHAT], "completions": ["Red."], **row})


def test_a_failed_sample_raises_or_is_none_on_request(service: Recorder) -> None:
    service.refused = {"Red."}
    columns = {"prompts": ["Colour?"] * 2, "completions": ["Red.", "Blue!"]}
    with pytest.raises(BeholderError):
        trl.reward_function(service.settings())(**columns)
    assert trl.reward_function(service.settings(failed="none"))(**columns) == [None, 5.0]


def test_none_is_for_single_samples_not_for_a_run_that_is_broken(service: Recorder) -> None:
    service.refused = {"Red.", "Blue!"}
    columns = {"prompts": ["Colour?"] * 2, "completions": ["Red.", "Blue!"]}
    with pytest.raises(BeholderError):
        trl.reward_function(service.settings(failed="none"))(**columns)
    service.refused = set()
    with pytest.raises(FingerprintMismatch):
        trl.reward_function(service.settings(failed="none", fingerprint="another"))(**columns)


def test_rewards_are_normalized_on_request(service: Recorder) -> None:
    assert trl.reward_function(service.settings(reward="normalized"))(["Colour?"], ["Red."]) == [-4.0]


INFO = {"prompt": np.array(MARKED, dtype=object), "images": np.array([{"bytes": PICTURE, "path": None}])}


def test_verl_finds_prompt_and_images_in_extra_info(service: Recorder) -> None:
    rewarder = service.rewarder()
    assert verl.compute_score("set", "Red.", None, INFO, rewarder=rewarder) == 4.0
    assert asyncio.run(verl.compute_score_async("set", "Red.", None, INFO, rewarder=rewarder)) == 4.0
    assert service.contexts == [(MARKED, [reference(PICTURE)])] * 2


def test_verl_without_a_prompt_says_what_the_data_set_lacks(service: Recorder) -> None:
    with pytest.raises(DataError, match="extra_info"):
        verl.compute_score("set", "Red.", None, {"index": 3}, rewarder=service.rewarder())


@pytest.mark.parametrize("kind", [ms_swift.BeholderORM, ms_swift.AsyncBeholderORM])
def test_ms_swift_passes_messages_that_end_with_the_completion(service: Recorder, kind: Any) -> None:
    function = kind(args=None, rewarder=service.rewarder())
    messages = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        for text, answer in (("<image>Colour?", "Red."), ("Colour?", "Blue!"), ("Colour?", "Green?"))
    ]
    images = [[{"bytes": PICTURE, "path": None}], [{"bytes": OTHER, "path": None}], []]
    rewards = function(["Red.", "Blue!", "Green?"], messages=messages, images=images, trainer_state=None)
    if asyncio.iscoroutine(rewards):
        rewards = asyncio.run(rewards)
    assert rewards == [4.0, 5.0, 6.0]
    assert service.contexts == [(MARKED, [reference(PICTURE)]), (MARKED, [reference(OTHER)]), (CHAT, [])]


def test_ms_swift_another_number_of_tags_than_images_raises(service: Recorder) -> None:
    messages = [[{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "Red."}]]
    with pytest.raises(InvalidRequest, match="2 <image>"):
        ms_swift.BeholderORM(rewarder=service.rewarder())(["Red."], messages=messages, images=[[PICTURE]])


def test_slime_passes_one_sample_or_a_group(service: Recorder) -> None:
    filled = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "Colour?"}]}]
    templated = SlimeSample("<|im_start|>...", "Blue!<|im_end|>", [1, 1], {"images": [PICTURE]}, {"prompt": CHAT})
    first, last = SlimeSample(filled, "Red.<|im_end|>", None, {"images": [OTHER]}), SlimeSample("Colour?", "Green?")
    group = [first, templated, last]
    arguments = SlimeArguments(apply_chat_template=False)
    assert asyncio.run(slime.custom_rm(arguments, group, rewarder=service.rewarder())) == [4.0, 5.0, 6.0]
    assert asyncio.run(slime.custom_rm(arguments, group[0], rewarder=service.rewarder())) == 4.0
    assert service.contexts[:3] == [(MARKED, [reference(PICTURE)])] * 2 + [("Colour?", [])]


@pytest.mark.parametrize(
    ("end", "written", "scored"),
    [
        (None, "Red.<|im_end|>", "Red."),
        (None, "<|im_end|>Red.<|im_end|><|im_end|>", "<|im_end|>Red.<|im_end|>"),
        (None, "It broke off", "It broke off"),
        (None, "Red.<|endoftext|>", "Red."),
        (None, "Red.<end_of_turn>", "Red."),
        (None, "Red.</s>", "Red."),
        ("<|eot_id|>", "Red.<|eot_id|>", "Red."),
        ("<|eot_id|>", "Red.<|im_end|>", "Red.<|im_end|>"),
        ("<|end|>, <|return|>", "Red.<|return|>", "Red."),
        ("", "Red.<|im_end|>", "Red.<|im_end|>"),
    ],
)
def test_slime_and_openrlhf_score_no_end_of_turn(
    service: Recorder, monkeypatch: pytest.MonkeyPatch, end: str | None, written: str, scored: str
) -> None:
    """As slime's rollout leaves it in the response: no_stop_trim, and special tokens are kept by default."""
    monkeypatch.delenv("BEHOLDER_END_OF_TURN", raising=False)
    if end is not None:
        monkeypatch.setenv("BEHOLDER_END_OF_TURN", end)
    sample = SlimeSample("Colour?", written)
    asyncio.run(slime.custom_rm(SlimeArguments(), sample, rewarder=service.rewarder()))
    openrlhf.reward_func([f"p{written}"], ["p"], [{"prompt": "Colour?"}], rewarder=service.rewarder())
    assert [body["response"] for body in service.bodies] == [scored] * 2


def test_slime_a_templated_prompt_is_not_taken_for_the_question(service: Recorder) -> None:
    sample = SlimeSample("<|im_start|>user...", "Red.")
    with pytest.raises(DataError, match="metadata"):
        asyncio.run(slime.custom_rm(SlimeArguments(True), sample, rewarder=service.rewarder()))


def test_openrlhf_reads_question_and_images_from_the_label(service: Recorder, tmp_path: Any) -> None:
    (tmp_path / "picture.png").write_bytes(PICTURE)
    prompt = "<|im_start|>user\nColour?<|im_end|>\n<|im_start|>assistant\n"
    asked = {"prompt": "Colour?", "images": [str(tmp_path / "picture.png")]}
    queries = [f"{prompt}Red.<|im_end|>", f"{prompt}It broke off"]
    answer = openrlhf.reward_func(queries, [prompt] * 2, [asked, json.dumps(asked)], rewarder=service.rewarder())
    assert answer["rewards"].tolist() == answer["scores"].tolist() == [4.0, 12.0]
    assert service.contexts == [("Colour?", [reference(PICTURE)])] * 2


@pytest.mark.parametrize("label", [None, "red", "{}", {"images": []}])
def test_openrlhf_a_label_without_the_question_raises(service: Recorder, label: Any) -> None:
    with pytest.raises(DataError, match="label"):
        openrlhf.reward_func(["pRed."], ["p"], [label], rewarder=service.rewarder())


def test_openrlhf_has_no_place_for_a_sample_without_a_reward(service: Recorder) -> None:
    service.refused = {"Red."}
    asked = [{"prompt": "Colour?"}] * 2
    with pytest.raises(ConfigurationError, match="BEHOLDER_FAILED=raise"):
        openrlhf.reward_func(["pRed.", "pBlue!"], ["p"] * 2, asked, rewarder=service.rewarder(failed="none"))
    assert not service.bodies


def test_openrlhf_a_query_that_does_not_begin_with_its_prompt_raises(service: Recorder) -> None:
    with pytest.raises(DataError, match="begin"):
        openrlhf.reward_func(["Red."], ["p"], [{"prompt": "p"}], rewarder=service.rewarder())


def score_with_verl(rewarder: Rewarder, prompt: Any, images: list[Any]) -> None:
    verl.compute_score("d", "Red.", None, {"prompt": prompt, "images": images}, rewarder=rewarder)


def score_with_trl(rewarder: Rewarder, prompt: Any, images: list[Any]) -> None:
    trl.reward_function(rewarder.settings)([CHAT], ["Red."], images=[images], beholder_prompt=[prompt])


def score_with_openrlhf(rewarder: Rewarder, prompt: Any, images: list[Any]) -> None:
    openrlhf.reward_func(["QRed."], ["Q"], [{"prompt": prompt, "images": images}], rewarder=rewarder)


def score_with_slime(rewarder: Rewarder, prompt: Any, images: list[Any]) -> None:
    sample = SlimeSample(prompt, "Red.", multimodal_inputs={"images": images})
    asyncio.run(slime.custom_rm(SlimeArguments(), sample, rewarder=rewarder))


TRAINERS = [score_with_verl, score_with_trl, score_with_openrlhf, score_with_slime]


TAGGED = "<image>\nFirst, <image> second?"
PROMPTS = {
    "string": TAGGED,
    "messages": [{"role": "user", "content": TAGGED}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": TAGGED}]}],
}


@pytest.mark.parametrize("score", TRAINERS)
@pytest.mark.parametrize("form", PROMPTS)
def test_a_tag_is_the_place_of_an_image(score: Any, form: str, service: Recorder) -> None:
    score(service.rewarder(), PROMPTS[form], [PICTURE, OTHER])
    image = {"type": "image"}
    parts = [image, {"type": "text", "text": "First, "}, image, {"type": "text", "text": " second?"}]
    assert service.contexts == [([{"role": "user", "content": parts}], [reference(PICTURE), reference(OTHER)])]


@pytest.mark.parametrize("score", TRAINERS)
def test_a_tag_without_images_is_text_and_another_number_raises(score: Any, service: Recorder) -> None:
    score(service.rewarder(), "What does <image> mean?", [])
    assert service.contexts == [("What does <image> mean?", [])]
    with pytest.raises(InvalidRequest, match="1 <image> but there are 2 images"):
        score(service.rewarder(), "<image> Colour?", [PICTURE, OTHER])


def test_trl_tool_calls_are_refused(service: Recorder) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "zoom"}}]}
    reward = trl.reward_function(service.settings())
    for prompt, completion in ((CHAT, [{**call, "content": "Red."}]), ([*CHAT, call, *CHAT], "Red.")):
        with pytest.raises(InvalidRequest, match="tool_calls"):
            reward([prompt], [completion])


def test_trl_names_of_several_functions(service: Recorder) -> None:
    names = {trl.reward_function(service.settings(), name).__name__ for name in ("beholder", "proxy")}
    assert names | {trl.async_reward_function(service.settings(), "async").__name__} == {"beholder", "proxy", "async"}


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "BEHOLDER_URL": "http://one:8000, http://two:8000",
        "BEHOLDER_API_KEY": "key",
        "BEHOLDER_FINGERPRINT": "first",
        "BEHOLDER_REWARD": "normalized",
        "BEHOLDER_FAILED": "none",
        "BEHOLDER_DEADLINE_S": "12.5",
        "BEHOLDER_MAX_CONCURRENCY": "7",
        "BEHOLDER_REASONING": "cut",
        "BEHOLDER_EMPTY": "-10",
        "BEHOLDER_ATTEMPT_S": "2.5",
    }
    urls = ("http://one:8000", "http://two:8000")
    options: dict[str, Any] = {"reasoning": "cut", "empty": -10, "attempt_s": 2.5}
    expected = RewardSettings(urls, "key", "first", "normalized", "none", 12.5, 7, **options)
    assert RewardSettings.from_environment(environment) == expected
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    default_rewarder.cache_clear()
    assert default_rewarder() is default_rewarder()
    default_rewarder.cache_clear()


def test_the_service_gives_a_request_up_before_its_client_does() -> None:
    of_client = inspect.signature(AsyncRewardClient).parameters["deadline_s"].default
    of_trainers = [RewardSettings(("http://t",)), RewardSettings.from_environment({"BEHOLDER_URL": "http://t"})]
    assert [settings.deadline_s for settings in of_trainers] == [of_client] * 2
    assert of_client >= Settings.model_fields["request_deadline_s"].default + 30
    assert f"(default {of_client:g})" in (rewards.__doc__ or "")


def test_a_replica_that_hangs_costs_a_run_one_attempt() -> None:
    service = Recorder()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "hangs":
            await asyncio.Event().wait()
        return service(request)

    urls = ("http://hangs", "http://answers")
    settings = RewardSettings(urls, attempt_s=0.2, deadline_s=20, transport=httpx.MockTransport(answer))
    samples = [Sample(f"Question {number}?", [PICTURE], "Red.") for number in range(20)]
    assert Rewarder(settings).rewards(samples) == [4.0] * 20


def test_the_documentation_names_every_variable_that_is_read() -> None:
    class Reading(dict[str, str]):
        """Remembers what it was asked for."""

        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return super().get(name, default)

    asked: set[str] = set()
    RewardSettings.from_environment(Reading(BEHOLDER_URL="http://t"))
    assert asked == set(re.findall(r"^BEHOLDER_\w+", rewards.__doc__ or "", re.MULTILINE))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"BEHOLDER_REWARD": "logit"},
        {"BEHOLDER_FAILED": "zero"},
        {"BEHOLDER_DEADLINE_S": "soon"},
        {"BEHOLDER_ATTEMPT_S": "soon"},
        {"BEHOLDER_REASONING": "drop"},
        {"BEHOLDER_EMPTY": "none"},
        {"BEHOLDER_EMPTY": "nan"},
        {"BEHOLDER_EMPTY": "-inf"},
    ],
)
def test_unusable_settings_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="BEHOLDER_"):
        RewardSettings.from_environment({**({"BEHOLDER_URL": "http://t"} if wrong else {}), **wrong})


MODULES = ", ".join(f"beholder.trainers.{name}" for name in ("trl", "verl", "ms_swift", "slime", "openrlhf", "easyr1"))
HEAVY = {"torch", "vllm", "fastapi", "transformers", "numpy", "PIL", "trl", "verl", "swift", "slime", "openrlhf"}


def test_the_trainers_modules_import_nothing_heavy() -> None:
    code = f"import sys, {MODULES}; print(*{HEAVY} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
