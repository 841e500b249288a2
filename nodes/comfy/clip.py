"""A CLIP made from the VLM, so that stock text nodes and LoRA loaders work; it shares the VLM's weights."""

import comfy.sd

from ...internvlu_core.errors import InputError
from .conditioning import conditioning
from .float8 import scaled_state_dict
from .images import to_pil
from .quantised import stored_tensors
from .vlm import ComfyVLM


class InternVLUCLIP(comfy.sd.CLIP):
    """Encodes text, with pictures if any, as the full branch, and empty text as the unconditional one."""

    def __init__(self, vlm: ComfyVLM):
        super().__init__(no_init=True)
        self.vlm = vlm
        self.patcher = vlm.patcher
        self.cond_stage_model = vlm.patcher.model
        self.tokenizer = vlm.tokenizer
        self.tokenizer_options = {}
        self.layer_idx = None
        self.use_clip_schedule = False
        self.apply_hooks_to_conds = None

    def clone(self, *args, **kwargs):
        other = InternVLUCLIP(self.vlm.with_patcher(self.patcher.clone(*args, **kwargs)))
        other.use_clip_schedule = self.use_clip_schedule
        other.apply_hooks_to_conds = self.apply_hooks_to_conds
        return other

    def clip_layer(self, layer_idx):
        raise InputError(
            "CLIPSetLastLayer has no effect on InternVL-U: the checkpoint says which layers are used; remove the node"
        )

    def encode_from_tokens_scheduled(self, tokens, *args, **kwargs):
        if self.use_clip_schedule and self.patcher.forced_hooks is not None:
            raise InputError("hooks on InternVL-U's CLIP cannot follow a schedule; turn schedule_clip off")
        return super().encode_from_tokens_scheduled(tokens, *args, **kwargs)

    def tokenize(self, text, return_word_ids=False, images=(), **kwargs):
        """images: IMAGEs [B, H, W, C] of TextEncodeQwenImageEdit and its like."""
        return {"text": text, "images": [to_pil(image) for batch in images for image in batch]}

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        branch = self.vlm.encode_text(tokens["text"], tokens["images"])
        hidden, values = conditioning(branch)[0]
        if return_dict:
            return self._with_hooks({"cond": hidden, "pooled_output": None, **values})
        return (hidden, None) if return_pooled else hidden

    def _with_hooks(self, values: dict) -> dict:
        self.add_hooks_to_dict(values)
        return values

    def load_model(self, *args, **kwargs):
        self.vlm.load(tokens=0)
        return self.patcher

    def get_sd(self):
        return scaled_state_dict(self.cond_stage_model, stored_tensors(self.cond_stage_model.state_dict()))

    def state_dict_for_saving(self):
        return scaled_state_dict(self.cond_stage_model, self.patcher.model_state_dict_for_saving())


def as_vlm(value) -> ComfyVLM:
    """What a vlm input holds. Raises InputError for another model's CLIP."""
    if isinstance(value, InternVLUCLIP):
        return value.vlm
    if isinstance(value, ComfyVLM):
        return value
    raise InputError("the CLIP is another model's; connect the VLM of InternVL-U Load, or InternVL-U CLIP")
