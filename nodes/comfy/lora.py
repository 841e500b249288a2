"""Adapters (LoRA and its kin) for InternVL-U in ComfyUI's own loaders, however their trainer has written the names.

Why a hook: comfy.lora asks the class of a model for the spellings it takes, in a chain of isinstance tests that cannot
be added to. A subclass of comfy.model_base.QwenImage would get four spellings for the MMDiT, but neither the released
names nor peft's, and none for the language model. ComfyUI only logs the keys that match nothing, one line each, so an
adapter for another model would silently have no effect. Parsing and patching are left to ComfyUI.
"""

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.lora
import torch
from comfy.weight_adapter import LoRAAdapter

from ...internvlu_core.models.vlm import VLM
from .dequantising import matrix_shapes
from .model import InternVLUModel

MODEL_PREFIX = "diffusion_model."
# In front of a module's name: of the network's owners as released, of what wraps it while training, and, where a
# trainer joins all by underscores, of the file format.
MODEL_OWNERS = ("", "decoder.", "generation_decoder.", "generation_decoder.decoder.")
MODEL_WRAPPERS = ("", "diffusion_model.", "transformer.", "base_model.model.")
MODEL_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
CLIP_WRAPPERS = ("", "text_encoders.", "text_encoder.", "base_model.model.")
CLIP_FLAT = ("lora_te_", "lora_te1_", "lycoris_")


class KeyMap(dict):
    """{module as an adapter names it: parameter} for a network of ours. load_lora checks adapters for these only.

    shapes: {parameter: torch.Size}, ours only. examples: names that would have matched, one per network.
    """

    def __init__(self, keys: dict):
        super().__init__(keys)
        self.shapes: dict[str, torch.Size] = {}
        self.examples: list[str] = []


@functools.cache  # once, or adapters would be checked twice
def install():
    """Make the stock LoRA loaders take our MODEL and CLIP. Models of other families are passed on as they are."""
    comfy.lora.model_lora_keys_unet = _extended(comfy.lora.model_lora_keys_unet, InternVLUModel, model_names)
    comfy.lora.model_lora_keys_clip = _extended(comfy.lora.model_lora_keys_clip, VLM, clip_names)
    comfy.lora.load_lora = _checked(comfy.lora.load_lora)


def model_names(parameter: str) -> Iterator[str]:
    """Spellings of the module that owns a weight of the MODEL; none for what is not the MMDiT's."""
    if parameter.startswith(MODEL_PREFIX):
        names = [owner + module_of(parameter.removeprefix(MODEL_PREFIX)) for owner in MODEL_OWNERS]
        yield from _wrapped(names, MODEL_WRAPPERS, MODEL_FLAT)


def clip_names(parameter: str) -> Iterator[str]:
    """Spellings of the module that owns a weight of the VLM."""
    name = module_of(parameter)
    names = [name, f"vlm.{name}"]
    # As trained on the language model alone, with its head and without.
    for owner in ("language_model.", "language_model.model."):
        if name.startswith(owner):
            names.append(name.removeprefix(owner))
    return _wrapped(names, CLIP_WRAPPERS, CLIP_FLAT)


def module_of(parameter: str) -> str:
    return parameter.removesuffix(".weight")


def _wrapped(names: list[str], wrappers: tuple[str, ...], flat: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        yield from (wrapper + name for wrapper in wrappers)
        yield from (prefix + name.replace(".", "_") for prefix in flat)


def _extended(original, network_class: type, spell):
    @functools.wraps(original)
    def model_lora_keys(model, *args, **kwargs):
        keys = original(model, *args, **kwargs)
        if not isinstance(model, network_class):
            return keys
        ours = keys if isinstance(keys, KeyMap) else KeyMap(keys)
        parameters = model.state_dict()
        for parameter in parameters:
            if parameter.endswith(".weight"):
                ours |= dict.fromkeys(spell(parameter), parameter)
        # A weight in fewer bits is stored in another shape than it has.
        ours.shapes |= {name: tensor.shape for name, tensor in (parameters | dict(model.named_parameters())).items()}
        ours.shapes |= matrix_shapes(model)
        ours.examples.append(f"{module_of(next(name for name in parameters if name.endswith('_proj.weight')))}.…")
        return ours

    return model_lora_keys


def _checked(original):
    @functools.wraps(original)
    def load_lora(lora, to_load, log_missing=True):
        # A hook passes False: it gives one adapter to MODEL and CLIP in turn, so either may find nothing.
        if not (isinstance(to_load, KeyMap) and log_missing):
            return original(lora, to_load, log_missing)
        with unloaded_keys() as missing:
            patches = original(lora, to_load)
        if not patches:
            raise ValueError(
                f"none of the adapter's {len(lora)} tensors fits this model; the first is {next(iter(lora), None)!r}, "
                f"expected are names like {' or '.join(to_load.examples)}, also as peft, diffusers or kohya write them"
            )
        wrong = [text for key, patch in patches.items() if (text := misfit(key, patch, to_load.shapes.get(key)))]
        if wrong:
            raise ValueError(
                f"the adapter is for another model: {len(wrong)} of {len(patches)} weights have "
                f"another shape in this model, for example {wrong[0]}"
            )
        if missing:
            logging.warning(
                f"LoRA: {len(missing)} of {len(lora)} tensors fit nothing in this model and are ignored, "
                f"for example {missing[0]!r}"
            )
        return patches

    return load_lora


def misfit(key: str, patch, shape: torch.Size | None) -> str:
    """What is wrong with the shape of a patch to a weight of this shape (None: not ours), or nothing.

    ComfyUI finds out only when it patches, and then logs it and leaves the weight alone.
    """
    if isinstance(patch, LoRAAdapter):
        up, down, *_, reshape = patch.weights
        found = up.shape[0], down[0].numel()
        wanted = None if shape is None or reshape is not None else (shape[0], shape[1:].numel())
    elif isinstance(patch, tuple) and patch[0] in ("diff", "set"):
        found, wanted = patch[1][0].shape, shape
    else:
        return ""
    if wanted is None or tuple(found) == tuple(wanted):
        return ""
    return f"{key}: {list(found)} in the adapter, {list(wanted)} in the model"


@contextmanager
def unloaded_keys():
    """The keys that ComfyUI reports as not loaded, one log line each; a list in place of those lines."""
    found, message, thread = [], "lora key not loaded: ", threading.get_ident()

    def collect(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.thread != thread or not text.startswith(message):
            return True
        found.append(text.removeprefix(message))
        return False

    logger = logging.getLogger()
    logger.addFilter(collect)
    try:
        yield found
    finally:
        logger.removeFilter(collect)
