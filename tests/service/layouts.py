"""Reward models as other trainers save them, tiny, each with the reward that its own layout computes.

The rewards come from the layouts' own classes in plain transformers and from the folder's own processor; nothing of
Beholder is used but the tiny bases' makers.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from beholder_training.bases import initialise, make_base

Reward = Callable[[str, Sequence[Image.Image], str], float]
HEAD_STD = 0.5
BIAS = 0.37


@dataclass(frozen=True)
class Original:
    """A folder to adopt; `reward` is the trained model's own for (prompt, images, response)."""

    folder: Path
    reward: Reward
    reads_images: bool = True


def conversation(prompt: str, images: Sequence[Image.Image], response: str) -> list[dict[str, Any]]:
    content: Any = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": response}]},
    ]


def sequence_classifier(pretrained: type, base: Any) -> Any:
    """transformers' generic sequence classification on `base`, as its native classes are made."""
    from transformers.modeling_layers import GenericForSequenceClassification

    family = pretrained.__name__.removesuffix("PreTrainedModel")
    cls = type(f"{family}ForSequenceClassification", (GenericForSequenceClassification, pretrained), {})
    base.config.num_labels = 1
    model = cls(base.config)
    model.model.load_state_dict(base.state_dict())
    nn.init.normal_(model.score.weight, std=HEAD_STD)
    return model.eval()


def vision_language_classifier(folder: Path, architecture: str) -> Original:
    """XForSequenceClassification of one of the four architectures, saved by `save_pretrained`."""
    import transformers
    from transformers import AutoModel, AutoProcessor

    make_base(folder / "base", architecture)
    base = AutoModel.from_pretrained(folder / "base")
    families = {"qwen3_vl": "Qwen3VL", "qwen2_5_vl": "Qwen2_5_VL", "internvl": "InternVL", "llava": "Llava"}
    module = getattr(transformers.models, architecture)
    model = sequence_classifier(getattr(module, f"{families[architecture]}PreTrainedModel"), base)
    processor = AutoProcessor.from_pretrained(folder / "base")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")

    def reward(prompt: str, images: Sequence[Image.Image], response: str) -> float:
        return float(model(**processed(processor, prompt, images, response)).logits.item())

    return Original(folder / "model", torch.inference_mode()(reward))


def processed(processor: Any, prompt: str, images: Sequence[Image.Image], response: str) -> Any:
    text = processor.apply_chat_template(conversation(prompt, images, response), tokenize=False)
    return processor(text=[text], images=list(images) or None, return_tensors="pt")


def respell(folder: Path, spell: Callable[[str], str]) -> None:
    """Rename the stored weights, as other versions of the libraries call them."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({spell(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def as_vllm(name: str) -> str:
    """Qwen2.5-VL's: the head belongs to the language model."""
    if name == "score.weight":
        return "language_model.score.weight"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)


def as_modules(name: str) -> str:
    """LLaVA's and InternVL's as the modules of transformers are called; it saves them under earlier names."""
    if name == "score.weight":
        return name
    bare = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    return "model." + bare.replace("language_model.model.", "language_model.")


def as_before_452(name: str) -> str:
    """Qwen2.5-VL of earlier transformers: the language model is `model`, the vision tower stands beside it."""
    return name.removeprefix("model.").replace("language_model.", "model.", 1)


def text_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    make_base(folder / "tokenizer")
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def text_config(family: str, **more: Any) -> Any:
    import transformers

    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    if family == "Qwen2":
        heads.pop("head_dim")
    return getattr(transformers, f"{family}Config")(
        **sizes, **heads, max_position_embeddings=1024, pad_token_id=0, **more
    )


def text_classifier(folder: Path, family: str) -> Original:
    """transformers' own XForSequenceClassification of a text model."""
    import transformers

    tokenizer = text_tokenizer(folder)
    sliding = {"sliding_window": None} if family == "Mistral" else {}
    model = getattr(transformers, f"{family}ForSequenceClassification")(text_config(family, num_labels=1, **sliding))
    initialise(model.eval(), None)
    nn.init.normal_(model.score.weight, std=HEAD_STD)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return Original(folder / "model", text_reward(tokenizer, lambda **inputs: model(**inputs).logits), False)


def text_reward(tokenizer: Any, logit: Callable[..., Tensor]) -> Reward:
    @torch.inference_mode()
    def reward(prompt: str, images: Sequence[Image.Image], response: str) -> float:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        return float(logit(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).item())

    return reward


def value_head(hidden: int) -> nn.Linear:
    """TRL's: one linear map with a bias, on the last of the hidden states."""
    head = nn.Linear(hidden, 1)
    nn.init.normal_(head.weight, std=HEAD_STD)
    nn.init.constant_(head.bias, BIAS)
    return head


def skywork(folder: Path) -> Original:
    """A Qwen2.5-VL of transformers 4.51, as published: flat config, earlier names, its vocabulary's head, and TRL's
    value head in value_head.safetensors."""
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoProcessor, Qwen2_5_VLForConditionalGeneration

    make_base(folder / "base", "qwen2_5_vl")
    base = AutoModel.from_pretrained(folder / "base")
    model = Qwen2_5_VLForConditionalGeneration(base.config).eval()
    model.model.load_state_dict(base.state_dict())
    head, processor = value_head(64), AutoProcessor.from_pretrained(folder / "base")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    summary = {f"v_head.summary.{name}": value.detach() for name, value in head.named_parameters()}
    save_file(summary, folder / "model" / "value_head.safetensors")
    respell(folder / "model", as_before_452)
    flatten_config(folder / "model")

    @torch.inference_mode()
    def reward(prompt: str, images: Sequence[Image.Image], response: str) -> float:
        outputs = model(**processed(processor, prompt, images, response), output_hidden_states=True)
        return float(head(outputs.hidden_states[-1])[0, -1].item())

    return Original(folder / "model", reward)


def flatten_config(folder: Path) -> None:
    """config.json as Qwen2.5-VL's was before 4.52: the language model's entries beside the vision tower's."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("layer_types", None)
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat = text | config | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "use_sliding_window": False}
    (folder / "config.json").write_text(json.dumps(flat))


def value_head_inside(folder: Path) -> Original:
    """A text model of TRL's AutoModelForCausalLMWithValueHead: `v_head.summary` among the model's own weights."""
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2ForCausalLM

    tokenizer = text_tokenizer(folder)
    model = Qwen2ForCausalLM(text_config("Qwen2", tie_word_embeddings=False)).eval()
    initialise(model, None)
    head = value_head(128)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    file = folder / "model" / "model.safetensors"
    summary = {f"v_head.summary.{name}": value.detach() for name, value in head.named_parameters()}
    save_file(load_file(file) | summary, file, metadata={"format": "pt"})

    def logit(**inputs: Any) -> Tensor:
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
        reward: Tensor = head(hidden)[0, -1]
        return reward

    return Original(folder / "model", text_reward(tokenizer, logit), False)


def write_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
