"""`beholder adopt` of what TRL itself saves. Skipped where TRL, or the part of it that is needed, is not installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beholder_training.bases import initialise
from tests.service.layouts import BIAS, HEAD_STD, Original, text_config, text_reward, text_tokenizer
from tests.service.test_adopt import adopted, assert_served

trl = pytest.importorskip("trl")
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]  # TRL's own


def conversation(number: int, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}]


async def test_a_model_of_reward_trainer(tmp_path: Path) -> None:
    dataset = pytest.importorskip("datasets").Dataset
    from transformers import Qwen2ForSequenceClassification

    tokenizer = text_tokenizer(tmp_path)
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(text_config("Qwen2", num_labels=1))
    initialise(model, None)
    nn.init.normal_(model.score.weight, std=HEAD_STD)
    pairs = [{"chosen": conversation(n, "It is red."), "rejected": conversation(n, "No.")} for n in range(8)]
    arguments = trl.RewardConfig(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        bf16=False, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    before = model.score.weight.detach().clone()
    trainer = trl.RewardTrainer(
        model=model, args=arguments, train_dataset=dataset.from_list(pairs), processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert not torch.equal(before, model.score.weight)
    model.eval()
    original = Original(
        tmp_path / "model", text_reward(tokenizer, lambda **inputs: model(**inputs).logits), reads_images=False
    )
    await assert_served(original, adopted(original, tmp_path), "transformers")


async def test_a_model_with_value_head(tmp_path: Path) -> None:
    """TRL before 1.0."""
    wrapper = getattr(trl, "AutoModelForCausalLMWithValueHead", None)
    if wrapper is None:
        pytest.skip("this TRL has no value-head models")
    from transformers import Qwen2ForCausalLM

    tokenizer = text_tokenizer(tmp_path)
    torch.manual_seed(0)
    bare = Qwen2ForCausalLM(text_config("Qwen2", tie_word_embeddings=False))
    initialise(bare, None)
    model: Any = wrapper.from_pretrained(bare).eval()
    nn.init.normal_(model.v_head.summary.weight, std=HEAD_STD)
    nn.init.constant_(model.v_head.summary.bias, BIAS)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def logit(**inputs: Any) -> Tensor:
        values: Tensor = model(**inputs)[-1][0, -1]
        return values

    original = Original(tmp_path / "model", text_reward(tokenizer, logit), reads_images=False)
    await assert_served(original, adopted(original, tmp_path), "transformers")
