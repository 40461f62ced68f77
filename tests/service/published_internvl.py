"""The published InternVL chat layout, tiny: its vision tower, projector and tiling as OpenGVLab computes them.

Written from the published model's description (pre-norm encoder with layer scale and packed q, k, v; pixel shuffle v2;
tiles of the closest aspect ratio and a thumbnail); the language model is transformers' own.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from PIL import Image
from torch import Tensor, nn

from beholder_training.bases import initialise, make_base
from tests.service.layouts import HEAD_STD, Original, text_config

SIDE, PATCH, WIDTH, TILES = 64, 8, 64, 4
TOKENS = (SIDE // PATCH // 2) ** 2
TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] + '\n' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}<IMG_CONTEXT>\n{% endif -%}"
    "{%- endfor -%}<|im_end|>\n{% endfor -%}"
)


class VisionLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 128), "fc2": nn.Linear(128, WIDTH)})
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        self.ls1, self.ls2 = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.ls1 * self.attn["proj"](attended)
        result: Tensor = x + self.ls2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return result


class VisionEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.patch_embedding = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.position_embedding = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2 + 1, WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(pixels), -1, -1), patches], 1) + self.position_embedding


class VisionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([VisionLayer(), VisionLayer()])})

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.embeddings(pixels)
        for layer in self.encoder["layers"].children():
            x = layer(x)
        return x[:, 1:]


class InternVLChatReward(nn.Module):
    """vision_model, mlp1, language_model and a `v_head`."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.vision_model = VisionModel()
        hidden = language_model.config.hidden_size
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.language_model = language_model
        self.v_head = nn.Linear(hidden, 1, bias=False)

    def forward(self, ids: Tensor, tiles: Tensor | None, context: int) -> Tensor:
        embeddings = self.language_model.get_input_embeddings()(ids)
        if tiles is not None:
            seen = self.mlp1(pixel_shuffle(self.vision_model(tiles)))
            embeddings = embeddings.masked_scatter((ids == context).unsqueeze(-1), seen)
        reward: Tensor = self.v_head(self.language_model.model(inputs_embeds=embeddings).last_hidden_state)[0, -1]
        return reward


def pixel_shuffle(x: Tensor) -> Tensor:
    """Two by two patches become one of four times the width (ps_version v2)."""
    side = int(x.shape[1] ** 0.5)
    x = x.view(len(x), side, side // 2, -1).transpose(1, 2).contiguous()
    x = x.view(len(x), side // 2, side // 2, -1).transpose(1, 2).contiguous()
    return x.view(len(x), (side // 2) ** 2, -1)


def tiles_of(image: Image.Image) -> Tensor:
    """The tiles of the grid whose aspect ratio is closest, and a thumbnail where there are several."""
    grids = sorted({(w, h) for w in range(1, TILES + 1) for h in range(1, TILES + 1) if w * h <= TILES},
                   key=lambda grid: grid[0] * grid[1])  # fmt: skip
    best, closest = (1, 1), float("inf")
    for grid in grids:
        difference = abs(image.width / image.height - grid[0] / grid[1])
        large = image.width * image.height > 0.5 * SIDE * SIDE * grid[0] * grid[1]
        if difference < closest or (difference == closest and large):
            best, closest = grid, difference
    columns, rows = best
    resized = image.resize((SIDE * columns, SIDE * rows), Image.Resampling.BICUBIC)
    boxes = [(SIDE * x, SIDE * y, SIDE * (x + 1), SIDE * (y + 1)) for y in range(rows) for x in range(columns)]
    tiles = [resized.crop(box) for box in boxes]
    if len(tiles) > 1:
        tiles.append(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return torch.stack([normalised(tile) for tile in tiles])


def normalised(tile: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(tile.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def published_internvl(folder: Path, family: str = "Qwen2") -> Original:
    """`family`: Qwen2, or InternLM2, which is a Llama with other names and q, k, v packed by groups."""
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    make_base(folder / "base", "internvl")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    llama = "Llama" if family == "InternLM2" else family
    config = text_config(llama, tie_word_embeddings=False)
    model = InternVLChatReward(getattr(transformers, f"{llama}ForCausalLM")(config)).eval()
    initialise(model, None)
    nn.init.normal_(model.v_head.weight, std=HEAD_STD)
    target = folder / "model"
    target.mkdir()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(target)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(as_internlm2(state, config) if family == "InternLM2" else state, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(_config(family, config)))
    context = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")

    @torch.inference_mode()
    def reward(prompt: str, images: Sequence[Image.Image], response: str) -> float:
        tiles = [tiles_of(image) for image in images]
        seen = "".join(f"<img>{'<IMG_CONTEXT>' * TOKENS * len(tile)}</img>\n" for tile in tiles)
        text = f"<|im_start|>user\n{seen}{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        return float(model(ids, torch.cat(tiles) if tiles else None, context).item())

    return Original(target, reward)


def _config(family: str, text: Any) -> dict[str, Any]:
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act")  # fmt: skip
    llm = {field: getattr(text, field) for field in fields}
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "llm_config": llm | {"architectures": [f"{family}ForCausalLM"], "rope_theta": 10000.0},
        "vision_config": {
            "hidden_size": WIDTH,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": SIDE,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": TILES,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
    }


def as_internlm2(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """A Llama's weights under InternLM2's names."""
    names = {
        "embed_tokens.": "tok_embeddings.",
        "self_attn.o_proj.": "attention.wo.",
        "mlp.gate_proj.": "feed_forward.w1.",
        "mlp.down_proj.": "feed_forward.w2.",
        "mlp.up_proj.": "feed_forward.w3.",
        "input_layernorm.": "attention_norm.",
        "post_attention_layernorm.": "ffn_norm.",
        "language_model.lm_head.": "language_model.output.",
    }
    renamed = {}
    for name, value in state.items():
        if "self_attn.q_proj" in name:
            groups = config.num_key_value_heads
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            packed = torch.cat([part.unflatten(0, (groups, -1, config.head_dim)) for part in parts], dim=1)
            renamed[name.replace("self_attn.q_proj", "attention.wqkv")] = packed.flatten(0, 2).contiguous()
        elif "self_attn.k_proj" in name or "self_attn.v_proj" in name:
            continue
        else:
            for old, new in names.items():
                if name.startswith("language_model."):
                    name = name.replace(old, new)
            renamed[name] = value
    return renamed
