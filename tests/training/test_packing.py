"""Packed scores are the scores of separate forwards, for every architecture."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from beholder.images import load_image
from beholder.modeling import packed_attention
from beholder.modeling.architectures import ARCHITECTURES
from beholder.modeling.inputs import PromptEncoder, collate
from beholder.modeling.last_layer import read_at
from beholder.modeling.packed_attention import make_layout
from beholder.modeling.packing import Packed, attention_mask, common_prefix_length, pack
from beholder.modeling.reward_model import RewardModel
from beholder.prompts import PromptRenderer, single_turn
from beholder_training.bases import make_base
from tests.pictures import png

RESPONSES = ["It is red.", "Definitely blue!", "Maybe é, or not <|im_end|> at all.", "It is redder."]


def test_pack_shares_the_prefix_once() -> None:
    packed = pack([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]])
    assert packed.token_ids == [1, 2, 3, 4, 5, 3]
    assert packed.segments == [0, 0, 1, 1, 2, 3]
    assert packed.offsets == [0, 1, 2, 3, 2, 2]
    assert packed.last == [3, 4, 5]


def test_identical_sequences_keep_a_token_each() -> None:
    assert common_prefix_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert pack([[1, 2, 3], [1, 2, 3]]).last == [2, 3]


def test_mask_shows_prefix_and_own_response_only() -> None:
    mask = attention_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def make_model(architecture: str, base: Path) -> tuple[PromptRenderer, PromptEncoder, RewardModel]:
    """A tiny one with random weights, and what encodes for it."""
    torch.manual_seed(0)
    make_base(base, architecture)
    renderer = PromptRenderer.from_folder(base)
    model = RewardModel.from_base(base).eval()
    torch.nn.init.normal_(model.score.weight)
    return renderer, PromptEncoder.from_folder(base, renderer.image_token_id), model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_equals_separate_and_plain_hugging_face(architecture: str, tmp_path: Path) -> None:
    renderer, encoder, model = make_model(architecture, tmp_path / "base")
    image = load_image(png(100, 60))
    prompts = [renderer.render(single_turn("What colour is it?", 1), text, [image]) for text in RESPONSES]
    text_only = renderer.render(single_turn("Hello?", 0), "Hi.")

    def rewards(*groups: list) -> torch.Tensor:  # type: ignore[type-arg]
        batch = collate([encoder.encode(group) for group in groups], renderer.image_token_id, encoder.pad_token_id)
        with torch.inference_mode():
            scores: torch.Tensor = model(**batch)
            return scores

    separate = torch.cat([rewards([prompt]) for prompt in prompts])
    assert torch.allclose(rewards(prompts), separate, atol=1e-4)
    assert torch.allclose(rewards(prompts, [text_only])[:4], separate, atol=1e-4)
    assert torch.allclose(rewards(prompts, [text_only])[4], rewards([text_only])[0], atol=1e-4)

    group = encoder.encode([prompts[0]])
    ids = torch.tensor([group.packed.token_ids])
    types = {"mm_token_type_ids": ids.eq(renderer.image_token_id or 0).long()} if "qwen" in architecture else {}
    with torch.inference_mode():
        plain = model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids), **types, **group.pictures[0].tensors)
        assert torch.allclose(model.score(plain.last_hidden_state[0, -1]), separate[0], atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_layout_gives_the_masked_rewards_and_gradients(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different prefixes and numbers of responses, with an image and without."""
    renderer, encoder, model = make_model(architecture, tmp_path / "base")
    image = load_image(png(100, 60))
    groups = [
        encoder.encode([renderer.render(single_turn("What colour is it?", 1), text, [image]) for text in RESPONSES]),
        encoder.encode([renderer.render(single_turn("Hello?", 0), text) for text in ("Hi.", "Good day to you!")]),
    ]

    def rewards_and_gradient() -> tuple[torch.Tensor, torch.Tensor, bool]:
        batch = collate(groups, renderer.image_token_id, encoder.pad_token_id)
        model.zero_grad()
        rewards = model(**batch)
        rewards.square().sum().backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        return rewards.detach(), torch.cat(gradients), bool(batch["layout"])

    def rewards_alone() -> torch.Tensor:
        """Whose last layer is computed at the responses' last tokens alone."""
        with torch.no_grad():
            rewards: torch.Tensor = model(**collate(groups, renderer.image_token_id, encoder.pad_token_id))
            return rewards

    masked, masked_gradient, has_layout = rewards_and_gradient()
    assert not has_layout
    assert torch.allclose(rewards_alone(), masked, atol=1e-4)
    monkeypatch.setattr(packed_attention, "WORTHWHILE", 0)
    monkeypatch.setattr(packed_attention, "GAIN", 0)
    sparse, sparse_gradient, has_layout = rewards_and_gradient()
    assert has_layout
    assert torch.allclose(sparse, masked, atol=1e-4)
    assert torch.allclose(rewards_alone(), masked, atol=1e-4)
    assert torch.allclose(sparse_gradient, masked_gradient, rtol=1e-3, atol=1e-4 * float(masked_gradient.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_autocast_without_a_gradient_gives_the_rewards_with_one(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training in bf16 weighs a step before it takes it; queries are float32 there, values bfloat16."""
    monkeypatch.setattr(packed_attention, "WORTHWHILE", 0)
    monkeypatch.setattr(packed_attention, "GAIN", 0)
    renderer, encoder, model = make_model(architecture, tmp_path / "base")
    prompts = [renderer.render(single_turn("Hello?", 0), text) for text in RESPONSES]
    batch = collate([encoder.encode(prompts)], renderer.image_token_id, encoder.pad_token_id)
    assert batch["layout"]
    with torch.autocast("cpu", torch.bfloat16):
        with_gradient = model(**batch).detach()
        with torch.no_grad():
            assert torch.allclose(model(**batch), with_gradient, atol=0.02)


@pytest.mark.parametrize("text_model", ["qwen3_moe", "phi"])
def test_a_text_model_of_another_shape_is_computed_whole(text_model: str) -> None:
    """A mixture of experts takes no rows of tokens, Phi names its layers otherwise."""
    config = AutoConfig.for_model(
        text_model, hidden_size=32, intermediate_size=48, moe_intermediate_size=48, num_hidden_layers=2, vocab_size=300,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config).eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        whole = backbone(input_ids=ids).last_hidden_state
        with read_at(backbone, torch.tensor([0, 1]), torch.tensor([5, 5])):
            assert torch.equal(backbone(input_ids=ids).last_hidden_state, whole)


def test_without_a_gradient_the_last_layer_computes_what_is_read_alone(tmp_path: Path) -> None:
    renderer, encoder, model = make_model("qwen3_vl", tmp_path / "base")
    prompts = [renderer.render(single_turn("Hello?", 0), text) for text in RESPONSES]
    batch = collate([encoder.encode(prompts)], renderer.image_token_id, encoder.pad_token_id)
    widths: list[torch.Size] = []
    first, *_, last = model.backbone.language_model.layers
    for layer in (first, last):
        layer.mlp.down_proj.register_forward_hook(lambda _, __, result: widths.append(result.shape[:-1]))
    with torch.inference_mode():
        model(**batch)
    model(**batch)
    assert widths == [batch["input_ids"].shape, (len(RESPONSES),), batch["input_ids"].shape, batch["input_ids"].shape]


def test_a_layout_pays_where_the_mask_is_mostly_empty() -> None:
    def row(prefix: int, response: int) -> Packed:
        shared = list(range(prefix))
        return pack([[*shared, *range(1000 * number, 1000 * number + response)] for number in range(2, 10)])

    long, short, image_dominated = row(300, 300), row(50, 10), row(1800, 20)
    assert make_layout([long], len(long.token_ids))
    assert not make_layout([short], len(short.token_ids))
    assert not make_layout([image_dominated], len(image_dominated.token_ids))
