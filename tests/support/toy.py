"""What the shipped workflows are given to run on the toy checkpoint in demo/: small sizes, and prompts of its world."""

from pathlib import Path

CHECKPOINT = Path(__file__).resolve().parents[2] / "demo" / "InternVL-U-toy"
SIZE = {"width": 64, "height": 64}
SEED = 4  # one with which the texts below come out right

# By kind of node.
_COMMON = {
    "InternVLULoader": {"checkpoint": CHECKPOINT.name},
    "InternVLUEmptyLatent": SIZE,
    "EmptySD3LatentImage": SIZE,
    "InternVLUSampler": {"seed": SEED},
    "ImageScale": SIZE,
    "TrainLoraNode": {"steps": 200, "learning_rate": 0.003, "training_dtype": "fp32", "lora_dtype": "fp32"},
    "RandomNoise": {"noise_seed": SEED},
    "KSampler": {"cfg": 2.5, "seed": SEED},  # which it does not damp where it is largest
    "LoadImage": {"image": "internvlu_toy.png"},
    "LoadImageMask": {"image": "internvlu_toy_mask.png"},
}

# The text of each workflow; internvlu_toy.png shows a blue circle on the left and a yellow star on the right.
_TEXTS = {
    "text_to_image": "a red heart in the top left",
    "ksampler": "a red heart in the top left",
    "image_to_image": "a blue circle and a green cross",
    "edit": "make the star red",
    "edit_with_mask": "make the star red",
    "advanced_sampling": "make the star red",
    "reason_then_draw": "draw one more than two hearts",
    "reason_then_edit": "give the star the colour of grass",
    "ask": "describe the picture",
    "caption_batch": "describe the picture",
}


def inputs(name: str, text: str | None = None) -> dict[str, dict]:
    """{kind of node: {input: value}} for a shipped workflow. text: of its prompt or question, if not the one above."""
    text = text or _TEXTS.get(name)
    if text is None:
        return _COMMON
    kinds = {"InternVLUEncode": "prompt", "InternVLUReason": "prompt", "InternVLUAsk": "question"}
    return {**_COMMON, **{kind: {key: text} for kind, key in kinds.items()}, "CLIPTextEncode": {"text": text}}


def fit(prompt: dict, name: str, text: str | None = None):
    """Set them in a workflow in API format. An empty text, the negative one, stays empty."""
    for node in prompt.values():
        values = inputs(name, text).get(node["class_type"], {})
        node["inputs"] |= {key: value for key, value in values.items() if node["inputs"].get(key) != ""}
