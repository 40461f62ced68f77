"""Small byte-level tokenizers with ChatML turns and each architecture's image tokens; any text encodes."""

from collections.abc import Iterable
from typing import Any

from beholder_training import worlds

END, PAD = "<|im_end|>", "<|endoftext|>"
CHATML = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}IMAGE{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
QWEN_TOKENS = {"image": "<|image_pad|>", "start": "<|vision_start|>", "end": "<|vision_end|>", "video": "<|video_pad|>"}
INTERNVL_TOKENS = {"image": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>", "video": "<video>"}
LLAVA_TOKENS = {"image": "<image>", "start": "", "end": "", "video": ""}


def world_texts() -> Iterable[str]:
    """Every phrase of the built-in world, so that its words are single tokens."""
    for style in worlds.STYLES:
        for answer in (*worlds.COLOURS, *worlds.COUNTS):
            yield worlds.phrase(answer, style)
    yield from worlds.QUESTIONS


def make_tokenizer(vocabulary: int, texts: list[str], tokens: dict[str, str]) -> Any:
    """A byte-level BPE tokenizer (any text encodes) with ChatML turns and the architecture's image tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [PAD, "<|im_start|>", END, *filter(None, tokens.values())]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=special,
        extra_special_tokens=_named_tokens(tokens),
    )
    around = tokens if tokens is QWEN_TOKENS else {"start": "", "end": ""}  # InternVL's processor adds its own
    tokenizer.chat_template = CHATML.replace("IMAGE", around["start"] + tokens["image"] + around["end"])
    return tokenizer


def _named_tokens(tokens: dict[str, str]) -> dict[str, str]:
    """The attributes that InternVL's processor reads from its tokenizer."""
    if tokens is not INTERNVL_TOKENS:
        return {}
    return {
        "start_image_token": tokens["start"],
        "end_image_token": tokens["end"],
        "context_image_token": tokens["image"],
        "video_token": tokens["video"],
    }
