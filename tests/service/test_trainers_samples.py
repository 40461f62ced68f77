"""What every trainer's samples go through before they are asked for: thoughts, empty responses, what cannot be read."""

import asyncio
import logging
from typing import Any

import pytest

from beholder.errors import BeholderError, ConfigurationError, DataError, EmptyResponse, InvalidRequest
from beholder.trainers import easyr1, ms_swift, openrlhf, slime, trl, verl
from beholder.trainers.conversations import chat_sample
from tests.service.asked import (
    CHAT,
    MARKED,
    OTHER,
    PICTURE,
    Recorder,
    SlimeArguments,
    SlimeSample,
    reference,
)


@pytest.mark.parametrize(
    ("written", "scored"),
    [
        ("<think>\nHm.\n</think>\n\nRed.", "Red."),
        ("Hm.</think>Red.", "Red."),
        ("<think>a</think>b<think>c</think>\nRed.", "Red."),
        ("Red.", "Red."),
        ("\nThe tag <think> is fine.", "\nThe tag <think> is fine."),
    ],
)
def test_thoughts_are_cut_on_request(service: Recorder, written: str, scored: str) -> None:
    reward = trl.reward_function(service.settings(reasoning="cut"))
    reward([CHAT], [[{"role": "assistant", "content": written}]])
    verl.compute_score("d", written, None, {"prompt": "p"}, rewarder=service.rewarder(reasoning="cut"))
    verl.compute_score("d", written, None, {"prompt": "p"}, rewarder=service.rewarder())
    assert [body["response"] for body in service.bodies] == [scored, scored, written]


def ask_verl(written: str, rewarder: Any) -> Any:
    return verl.compute_score("d", written, None, {"prompt": "p"}, rewarder=rewarder)


def ask_slime(written: str, rewarder: Any) -> Any:
    return asyncio.run(slime.custom_rm(SlimeArguments(), SlimeSample("p", f"{written}<|im_end|>"), rewarder=rewarder))


def ask_openrlhf(written: str, rewarder: Any) -> Any:
    (reward,) = openrlhf.reward_func(["q" + written], ["q"], [{"prompt": "p"}], rewarder=rewarder)["rewards"].tolist()
    return reward


EMPTY = ["", " \n", "<think>Hm.</think>\n", "<think>Hm."]


@pytest.mark.parametrize("ask", [ask_verl, ask_slime, ask_openrlhf])
@pytest.mark.parametrize("written", EMPTY)
def test_an_empty_response_raises_or_gets_the_users_reward(service: Recorder, ask: Any, written: str) -> None:
    with pytest.raises(EmptyResponse, match="BEHOLDER_EMPTY"):
        ask(written, service.rewarder(reasoning="cut"))
    assert ask(written, service.rewarder(reasoning="cut", empty=-10)) == -10.0
    assert not service.bodies


def test_the_reward_of_an_empty_response_is_for_that_alone(service: Recorder) -> None:
    service.refused = {"Red."}
    columns: Any = {
        "prompts": [CHAT] * 4,
        "completions": ["", [{"role": "assistant", "content": None}], "Red.", "Blue!"],
    }
    with pytest.raises(BeholderError, match="refused"):
        trl.reward_function(service.settings(empty=-1.0, reward="normalized"))(**columns)
    assert trl.reward_function(service.settings(empty=-1.0, failed="none"))(**columns) == [-1.0, -1.0, None, 5.0]
    assert trl.reward_function(service.settings(failed="none"))(**columns) == [None, None, None, 5.0]


CALL = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "zoom"}}]}]


@pytest.mark.parametrize("make", [trl.reward_function, trl.async_reward_function])
def test_with_none_a_sample_that_cannot_be_read_is_none_too(service: Recorder, make: Any) -> None:
    def ask(completions: list[Any], **settings: Any) -> Any:
        rewards = make(service.settings(**settings))([CHAT] * len(completions), completions)
        return asyncio.run(rewards) if asyncio.iscoroutine(rewards) else rewards

    assert ask([CALL, "Red.", CALL, "Blue!"], failed="none") == [None, 4.0, None, 5.0]
    asked = len(service.bodies)
    with pytest.raises(InvalidRequest, match="tool_calls"):
        ask(["Red.", CALL])
    with pytest.raises(InvalidRequest, match="tool_calls"):
        ask([CALL, CALL], failed="none")
    assert len(service.bodies) == asked == 2


@pytest.mark.parametrize("kind", [ms_swift.BeholderORM, ms_swift.AsyncBeholderORM])
def test_ms_swift_would_count_a_none_as_0(service: Recorder, kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="BEHOLDER_FAILED=raise"):
        kind(rewarder=service.rewarder(failed="none"))


def test_ms_swift_columns_that_are_there_and_hold_nothing_are_fine(service: Recorder) -> None:
    messages = [[{"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red."}]] * 2
    rows = {"videos": [None, []], "audios": [[], None], "objects": [{"ref": [], "bbox": []}, None]}
    function = ms_swift.BeholderORM(rewarder=service.rewarder())
    assert function(["Red.", "Red."], messages=messages, **rows) == [4.0, 4.0]


@pytest.mark.parametrize(
    "row", [{"videos": [["a.mp4"]]}, {"audios": [["a.wav"]]}, {"objects": [{"bbox": [[1, 2, 3, 4]]}]}]
)
def test_ms_swift_a_row_with_more_than_text_and_images_raises(service: Recorder, row: dict[str, Any]) -> None:
    messages = [[{"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red."}]]
    with pytest.raises(InvalidRequest, match="a row with"):
        ms_swift.BeholderORM(rewarder=service.rewarder())(["Red."], messages=messages, **row)


def test_slime_takes_a_number_for_every_sample(service: Recorder) -> None:
    group = [SlimeSample("p", "Red."), SlimeSample("p", "Blue!")]
    with pytest.raises(ConfigurationError, match="BEHOLDER_FAILED=raise"):
        asyncio.run(slime.custom_rm(SlimeArguments(), group, rewarder=service.rewarder(failed="none")))


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ([SlimeSample("p", "Red."), SlimeSample("p", "Blue!")], "several samples"),
        (SlimeSample("p", "Look: <tool_call>..a crop.. Red.", loss_mask=[1, 0, 0, 1]), "loss mask"),
        (SlimeSample("p", "Red.", multimodal_inputs={"images": None, "videos": ["frames"]}), "videos"),
    ],
)
def test_slime_what_is_no_single_answer_raises(service: Recorder, sample: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        asyncio.run(slime.custom_rm(SlimeArguments(), [sample], rewarder=service.rewarder()))


def test_slime_zeros_of_an_earlier_policy_are_still_the_answer(service: Recorder) -> None:
    sample = SlimeSample("p", "Red.", loss_mask=[0, 0, 1])
    arguments = SlimeArguments(partial_rollout=True, mask_offpolicy_in_partial_rollout=True)
    assert asyncio.run(slime.custom_rm(arguments, sample, rewarder=service.rewarder())) == 4.0


def test_slime_images_of_the_metadata_go_before_the_resized_ones(service: Recorder) -> None:
    metadata = {"prompt": "Colour?", "images": [PICTURE]}
    sample = SlimeSample("<|im_start|>..", "Red.", multimodal_inputs={"images": [OTHER]}, metadata=metadata)
    asyncio.run(slime.custom_rm(SlimeArguments(True), sample, rewarder=service.rewarder()))
    assert service.contexts == [("Colour?", [reference(PICTURE)])]


PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Colour?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "place", "expanded"),
    [
        (PROMPT, "<|image_pad|>", "<|image_pad|>" * 64),
        ("<|turn>user\n<|image|>Colour?<turn|>\n", "<|image|>", f"<|image>{'<|image|>' * 70}<image|>"),
        ("<|user|><|begin_of_image|><|image|><|end_of_image|>?", "<|image|>", "<|image|>" * 9),
        (
            "u\n<start_of_image>?",
            "<start_of_image>",
            f"\n\n<start_of_image>{'<image_soft_token>' * 256}<end_of_image>\n\n",
        ),
        ("u <IMG_CONTEXT>\n?", "<IMG_CONTEXT>", f"<img>{'<IMG_CONTEXT>' * 256}</img>"),
        ("USER: <image><image>\n? ASSISTANT:", "<image>", "<image>" * 576),
    ],
)
def test_openrlhf_decodes_as_many_places_as_an_image_has_tokens(
    service: Recorder, prompt: str, place: str, expanded: str
) -> None:
    query = prompt.replace(place, expanded)
    asked = {"prompt": "Colour?", "images": [PICTURE]}
    answer = openrlhf.reward_func([f"{query}Red.<|im_end|>"], [prompt], [asked], rewarder=service.rewarder())
    assert answer["rewards"].tolist() == [4.0]
    assert service.bodies[0]["response"] == "Red."


@pytest.mark.parametrize(
    "query",
    [
        PROMPT.replace("<|image_pad|>", "") + "Red.",
        PROMPT.replace("<|image_pad|>", "<|image_pad|> <|image_pad|>") + "Red.",
        PROMPT.replace("<|image_pad|>", "<|image_pad|>" * 9).replace("Colour", "Shape") + "Red.",
        PROMPT.replace("<|image_pad|>", "<|image_pad|>" * 50_000)[:-1],
    ],
)
def test_openrlhf_any_other_difference_from_the_prompt_raises(
    service: Recorder, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(DataError, match="begin"):
        openrlhf.reward_func([query], [PROMPT], [{"prompt": "Colour?"}], rewarder=service.rewarder())
    assert "where the response begins is unknown" in caplog.text, "OpenRLHF logs it at INFO alone"


def test_easyr1_reads_question_and_images_from_the_answer(service: Recorder) -> None:
    rows = [
        {"response": answer, "response_length": 3, "ground_truth": {"prompt": "<image>Colour?", "images": [PICTURE]}}
        for answer in ("Red.", "Blue!")
    ]
    assert easyr1.compute_score(rows, rewarder=service.rewarder()) == [{"overall": 4.0}, {"overall": 5.0}]
    assert service.contexts == [(MARKED, [reference(PICTURE)])] * 2
    assert (easyr1.REWARD_TYPE, easyr1.REWARD_NAME) == ("batch", "beholder")
    with pytest.raises(DataError, match="EasyR1: the label"):
        easyr1.compute_score([{**rows[0], "ground_truth": "red"}], rewarder=service.rewarder())
    with pytest.raises(ConfigurationError, match="EasyR1"):
        easyr1.compute_score(rows, rewarder=service.rewarder(failed="none"))


PARTS = [
    {"type": "image_url", "image_url": {"url": "picture.png", "detail": "low"}},
    {"type": "image_url", "image_url": "picture.png"},
    {"type": "image", "image": {"url": "picture.png"}},
    {"type": "image", "url": "picture.png"},
    {"type": "image", "path": "picture.png", "image": None},
    {"type": "image", "image": "picture.png"},
]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_parts_bring_their_image_along(part: dict[str, Any]) -> None:
    sample = chat_sample(
        [{"role": "user", "content": [part, {"type": "text", "text": "Colour?"}]}], "Red.", ["it again"]
    )
    assert (sample.prompt, sample.images) == (MARKED, ["picture.png"])
