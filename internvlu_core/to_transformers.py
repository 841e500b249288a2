"""The part of a checkpoint that understands, as transformers' own InternVLForConditionalGeneration.

transformers 4.52 and newer, and the servers that know its class, load the written folder without this package. The
class has one table of embeddings and one head. So the rows of the special tokens of a prompt (VLM.embed) are written
into the table, and the head becomes a tensor of its own. Other special tokens are only ever generated; they keep the
rows of the main table, as in VLM.embed_generated.

Source: docs/model.md, "Vision encoder", "Language model" and "Prompt and chat template"; transformers,
`models/internvl`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from .checkpoints import load as weights
from .checkpoints.config import Config, LanguageConfig, ProcessorConfig, VisionConfig
from .checkpoints.convert import OnBytes, Output, write_files
from .checkpoints.files import DTYPES, Joined, Source, Stored, open_source
from .checkpoints.quantised import split_layers
from .errors import CheckpointError, InputError
from .models.vlm import SPECIAL_TOKENS
from .prompt import CHAT_SYSTEM, IM_END, IM_START, IMG, IMG_CONTEXT, IMG_END, IMG_UNCOND, PAD, Tokenizer

PROMPT_TOKENS = (IMG, IMG_END, IMG_CONTEXT)  # special tokens that a question has
VIDEO_TOKEN = IMG_UNCOND  # the processor asks for one; the model has not learned videos, and no question has this token
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
PREFIXES = {
    "vision_model.embeddings.class_embedding": "model.vision_tower.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": "model.vision_tower.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.": "model.vision_tower.embeddings.patch_embeddings.projection.",
    "vision_model.encoder.layers.": "model.vision_tower.encoder.layer.",
    "mlp1.0.": "model.multi_modal_projector.layer_norm.",
    "mlp1.1.": "model.multi_modal_projector.linear_1.",
    "mlp1.3.": "model.multi_modal_projector.linear_2.",
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
}
IN_A_VIT_LAYER = {
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
}
# What PromptBuilder.chat writes, for a list of messages. The processor puts each picture's tokens in its place.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system = SYSTEM -%}
{%- endif -%}
{%- macro text_of(content) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}{{ IMAGE + '\\n' }}
            {%- elif part['type'] == 'text' -%}{{ part['text'] }}
            {%- else -%}{{ raise_exception('InternVL-U reads text and images only') }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- START + 'system\\n' + text_of(system) + END + '\\n' -}}
{%- for message in messages -%}
    {%- set text = text_of(message['content']) -%}
    {%- if message['role'] == 'user' -%}
        {%- set text = text | trim -%}
        {%- if text -%}
            {%- set text = text[0] | upper ~ text[1:] -%}
            {%- if text[-1] not in '.!?,:;' -%}{%- set text = text ~ '.' -%}{%- endif -%}
        {%- endif -%}
    {%- endif -%}
    {{- START + message['role'] + '\\n' + text + END + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- START + 'assistant\\n' -}}{%- endif -%}
"""


def to_transformers(
    checkpoint: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: OnBytes | None = None,
) -> list[Path]:
    """Write a checkpoint's VLM as a folder for transformers. Returns the files that were written.

    dtype, force, progress and errors are those of convert. Also raises CheckpointError for a ViT or a vocabulary that
    transformers' class cannot hold.
    """
    source = open_source(checkpoint)
    config = Config.read(source)
    stored = weights.check_component(source, config, "vlm")
    if split_layers(source, "vlm")[1]:
        raise InputError(f"{source.path} has weights in fewer bits; convert it with a dtype to a folder first")
    with source.tokenizer_folder() as folder:
        tokenizer = Tokenizer(folder)
    _check(config, tokenizer)
    tensors = rename(config, fold_special_tokens(stored, tokenizer, dtype))
    texts = _configs(config, tokenizer, next(iter(tensors.values())).dtype, dtype) | _tokenizer_files(source)
    outputs = [Output(Path(target) / "model.safetensors", tensors, {"format": "pt"})]
    outputs += [Output(Path(target) / name, {}, {}, text) for name, text in texts.items()]
    return write_files(outputs, dtype, force=force, progress=progress)


def fold_special_tokens(
    stored: dict[str, Stored], tokenizer: Tokenizer, dtype: torch.dtype | None
) -> dict[str, Stored | Joined]:
    """The VLM's tensors with one table of embeddings, into which the rows of PROMPT_TOKENS are written."""
    tensors = dict(stored)
    table, special = tensors[EMBEDDING], tensors.pop("special_token_embedding.weight")
    if special.dtype != table.dtype and dtype is None:
        raise InputError(f"the embeddings are stored as {table.dtype} and {special.dtype}: name a dtype for both")
    tensors.setdefault(HEAD, table)  # a tied one is as the table was
    rows = sorted((tokenizer.id(token), SPECIAL_TOKENS.index(token)) for token in PROMPT_TOKENS)
    parts, after = [], 0
    for row, index in rows:
        parts += [table.rows(after, row), special.rows(index, index + 1)]
        after = row + 1
    tensors[EMBEDDING] = Joined((*parts, table.rows(after, table.shape[0])))
    return tensors


def rename(config: Config, tensors: dict[str, Stored | Joined]) -> dict[str, Stored | Joined]:
    """Tensors under transformers' names: three projections for one, and no ViT layer that is not used."""
    vision, renamed = config.vision, {}
    for name, tensor in tensors.items():
        layer = re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= vision.select_layer:
            continue
        if ".attn.qkv." in name:
            size = vision.hidden_size
            pieces = {
                name.replace("qkv", f"{letter}_proj"): tensor.rows(start, start + size)
                for letter, start in zip("qkv", range(0, 3 * size, size), strict=True)
            }
        else:
            pieces = {name: tensor}
        renamed |= {_name(piece): stored for piece, stored in pieces.items()}
    side = vision.image_size // vision.patch_size
    shapes = {"cls_token": (1, 1, vision.hidden_size), "position_embeddings": (1, side**2 + 1, vision.hidden_size)}
    for name, shape in shapes.items():
        key = f"model.vision_tower.embeddings.{name}"
        renamed[key] = replace(renamed[key], shape=shape)
    for key in renamed:
        if ".lambda_" in key:
            renamed[key] = replace(renamed[key], shape=(vision.hidden_size,))
    return renamed


def _name(name: str) -> str:
    """transformers' name of a released tensor."""
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    name = PREFIXES[prefix] + name.removeprefix(prefix)
    if prefix == "vision_model.encoder.layers.":
        for old, new in IN_A_VIT_LAYER.items():
            name = name.replace(old, new)
    return name


def _check(config: Config, tokenizer: Tokenizer):
    vision = config.vision
    if vision.qk_norm and vision.norm_eps != 1e-6:
        raise CheckpointError(
            f"transformers' class normalises queries and keys of the ViT with an epsilon of 1e-6, not {vision.norm_eps}"
        )
    if tokenizer.size > config.language.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.size} tokens, the language model {config.language.vocab_size}"
        )


def _configs(config: Config, tokenizer: Tokenizer, stored: str, dtype: torch.dtype | None) -> dict[str, str]:
    """{name: text} of the model's and the processor's configuration files. stored: dtype of the weights as stored."""
    vision, pictures = config.vision, config.processor
    tokens = (pictures.tile_size // vision.patch_size // vision.fold) ** 2
    model = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "torch_dtype": str(dtype or DTYPES.get(stored, torch.bfloat16)).removeprefix("torch."),
        "image_token_id": tokenizer.id(IMG_CONTEXT),
        "image_seq_length": tokens,
        "downsample_ratio": 1 / vision.fold,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "vision_config": _vision_config(vision),
        "text_config": _text_config(config.language),
    }
    generation = {"do_sample": False, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.id(PAD)}
    image = _image_config(pictures)
    # One tile by default, as InternVLU.answer; a caller asks for more by max_patches.
    tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": 1}
    files = {
        "config.json": model,
        "generation_config.json": generation,
        "preprocessor_config.json": {"image_processor_type": "GotOcr2ImageProcessorFast", **image, **tiles},
        "video_preprocessor_config.json": {"video_processor_type": "InternVLVideoProcessor", **image},
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": tokens},
    }
    return {name: _json(values) for name, values in files.items()}


def _vision_config(vision: VisionConfig) -> dict:
    return {
        "model_type": "internvl_vision",
        "hidden_size": vision.hidden_size,
        "num_hidden_layers": vision.select_layer,
        "num_attention_heads": vision.num_heads,
        "intermediate_size": vision.mlp_size,
        "attention_bias": vision.qkv_bias,
        "use_qk_norm": vision.qk_norm,
        "norm_type": vision.norm_type,
        "layer_norm_eps": vision.norm_eps,
        "image_size": [vision.image_size] * 2,
        "patch_size": [vision.patch_size] * 2,
    }


def _text_config(language: LanguageConfig) -> dict:
    return {
        "model_type": "qwen3",
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_kv_heads,
        "head_dim": language.head_dim,
        "intermediate_size": language.mlp_size,
        "rms_norm_eps": language.norm_eps,
        "rope_theta": language.rope_theta,
        "attention_bias": language.attention_bias,
        "max_position_embeddings": language.max_positions,
        "tie_word_embeddings": False,
    }


def _image_config(pictures: ProcessorConfig) -> dict:
    return {
        "size": {"height": pictures.tile_size, "width": pictures.tile_size},
        "resample": 3,  # PIL's number for bicubic
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": pictures.vit_mean,
        "image_std": pictures.vit_std,
    }


def _tokenizer_files(source: Source) -> dict[str, str]:
    """{name: text} of the tokenizer's files, with the names of tokens by which the processor asks, and the template."""
    texts = {
        name.removeprefix("processor/"): source.text(name)
        for name in source.text_names()
        if name.startswith("processor/") and name != "processor/processor_config.json"
    }
    values = json.loads(texts["tokenizer_config.json"])
    values.pop("chat_template", None)
    values["processor_class"] = "InternVLProcessor"
    values["extra_special_tokens"] = {
        "start_image_token": IMG,
        "end_image_token": IMG_END,
        "context_image_token": IMG_CONTEXT,
        "video_token": VIDEO_TOKEN,
    }
    template = CHAT_TEMPLATE
    constants = {"SYSTEM": CHAT_SYSTEM, "IMAGE": IMG_CONTEXT, "START": IM_START, "END": IM_END}
    for name, value in constants.items():
        template = template.replace(name, repr(value))
    return texts | {"tokenizer_config.json": _json(values), "chat_template.jinja": template}


def _json(values: dict) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"
