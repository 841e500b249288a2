"""The shipped workflows and subgraphs as they are described: scripts/make_workflows.py builds the files from this, and
tests compare the files with it.
"""

from internvlu_core.checkpoints import hub

from . import toy

CHECKPOINT = "InternVL-U"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loader(checkpoint: str = CHECKPOINT) -> dict:
    return node("InternVLULoader", checkpoint=checkpoint, weight_dtype="auto")


def encode(prompt: str, **inputs) -> dict:
    return node("InternVLUEncode", **{"vlm": ["1", 1], "prompt": prompt, **inputs})


def sampler(latent: list, **inputs) -> dict:
    values = {
        "model": ["1", 0],
        "full": ["2", 0],
        "partial": ["2", 1],
        "unconditional": ["2", 2],
        "latent_image": latent,
        "seed": 42,
        "steps": 20,
        "denoise": 1.0,
    }
    return node("InternVLUSampler", **values | inputs)


def decoded(prefix: str, latent: str = "4", restore: bool = False) -> dict:
    """VAE Decode and Save Image, with Edit Restore between them if asked for."""
    images = ["10", 0] if restore else ["5", 0]
    nodes = {
        "5": node("VAEDecode", samples=[latent, 0], vae=["1", 2]),
        "6": node("SaveImage", images=images, filename_prefix=prefix),
    }
    if restore:
        nodes["10"] = node("InternVLUEditRestore", edit=["3", 2], image=["5", 0])
    return nodes


def empty(width: int, height: int) -> dict:
    return node("InternVLUEmptyLatent", width=width, height=height, batch_size=1)


def picture(name: str) -> dict:
    return node("LoadImage", image=f"internvlu_{name}.png")


def fitted(**inputs) -> dict:
    return node("InternVLUEdit", vlm=["1", 1], vae=["1", 2], image=["7", 0], **inputs)


def ask(question, tokens: int, vlm: str = "1", image1: list = ("7", 0)) -> dict:
    return node("InternVLUAsk", vlm=[vlm, 1], image1=list(image1), question=question, max_new_tokens=tokens, seed=0)


def reason(prompt: str, **inputs) -> dict:
    return node("InternVLUReason", vlm=["1", 1], prompt=prompt, max_new_tokens=200, seed=0, **inputs)


PHOTO = picture("landscape")
CAT = "A photo of a cat on a windowsill, in the morning light"
SKY = "Change the sky to a sunset"
HOPE = "Draw a picture of hope."
SEEN = {"vae": ["1", 2], "image1": ["7", 0]}
FIND = "Please provide the bounding box coordinate of the region this sentence describes: <ref>THING</ref>"

REPOSITORY = f"https://huggingface.co/{hub.REPOSITORY}"
MODEL = f"""
## Model

[{hub.REPOSITORY}]({REPOSITORY}), {hub.SIZE}. The button *Download* in the node fetches it, when you press *Run* and not
before. Or fetch its parts yourself, [vlm]({REPOSITORY}/tree/main/vlm),
[generation_decoder]({REPOSITORY}/tree/main/generation_decoder), [vae]({REPOSITORY}/tree/main/vae),
[scheduler]({REPOSITORY}/tree/main/scheduler) and [processor]({REPOSITORY}/tree/main/processor), into

```
ComfyUI/
└── models/
    └── internvl_u/
        └── InternVL-U/
            ├── vlm/
            ├── generation_decoder/
            ├── vae/
            ├── scheduler/
            └── processor/
```

## Memory

VLM 4.7 GB, image generator 3.6 GB, VAE 0.1 GB, one at a time: by computation 6 GB of GPU memory are enough, with
`weight_dtype` *fp8_e4m3fn* 4 GB.
"""


def training(title: str, versions: str, outputs: tuple[int, int, int], more: dict, bypass: dict) -> dict:
    """The workflow that trains an adapter. ComfyUI's own training nodes differ from version to version.

    outputs: which of Train LoRA's are the adapter, the losses and the number of steps. more: its other inputs.
    bypass: other inputs of Load LoRA Model.
    """
    lora, losses, steps = outputs
    described = {"full": ["12", 0], "partial": ["12", 1], "unconditional": ["12", 2]}
    settings = {
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "steps": 1000,
        "learning_rate": 0.0003,
        "rank": 16,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "bf16",
        "lora_dtype": "bf16",
        "algorithm": "LoRA",
        "gradient_checkpointing": True,
        "existing_lora": "[None]",
    }
    return {
        "title": title,
        "prompt": {
            "1": loader(),
            "7": node("LoadImageTextDataSetFromFolder", folder="internvlu_moons"),
            "8": node("ImageScale", image=["7", 0], upscale_method="lanczos", width=512, height=512, crop="center"),
            "9": node("VAEEncode", pixels=["8", 0], vae=["1", 2]),
            "2": encode(["7", 1]),
            "10": node("TrainLoraNode", model=["1", 0], latents=["9", 0], positive=["2", 0], **settings, **more),
            "11": node("SaveLoRA", lora=["10", lora], prefix="loras/internvl_u", steps=["10", steps]),
            "16": node("LossGraphNode", loss=["10", losses], filename_prefix="loss_graph"),
            "12": encode("a yellow moon in the top left"),
            "13": empty(512, 512),
            "14": node("LoraModelLoader", model=["1", 0], lora=["10", lora], strength_model=1.0, **bypass),
            "15": sampler(["13", 0], **described),
            "17": node("VAEDecode", samples=["15", 0], vae=["1", 2]),
            "18": node("PreviewImage", images=["17", 0]),
            "4": sampler(["13", 0], model=["14", 0], **described),
            **decoded("InternVL-U trained"),
        },
        "columns": [
            ["1", "12"],
            ["7", "8", "9", "2"],
            ["10", "11", "16"],
            ["13", "15", "17", "18"],
            ["14", "4", "5", "6"],
        ],
        "groups": ["Load, and say what to draw", "Prepare", "Train", "Draw without it", "Draw with it"],
        "shown": 170,
        "versions": "training",
        "note": f"# Train an adapter\n\n{versions}\n\n"
        "1. Put ten pictures of one thing into a folder in ComfyUI's `input` folder, each with its caption in a text "
        "file of the same name. Call what is new by one rare word. Press R and choose the folder. The ten moons are "
        "for the toy: 64 × 64, 200 steps at 0.003.\n"
        "2. Write the word into the second **Encode** and press *Run*. The same seed draws without the adapter and "
        "with it.\n"
        "3. The adapter is in `output/loras`. Move it to `models/loras` and use it in *13 InternVL-U LoRA*.",
    }


def inputs(**exposed: tuple) -> dict:
    """Of a subgraph: {name: (label for people, *(node id, input))}."""
    return exposed


DRAW = inputs(
    prompt=("prompt", ("2", "prompt")),
    width=("width", ("3", "width")),
    height=("height", ("3", "height")),
    steps=("steps", ("4", "steps")),
    checkpoint=("model", ("1", "checkpoint")),
)
EDIT = inputs(
    image=("picture", ("2", "image1"), ("3", "image")),
    prompt=("what to change", ("2", "prompt")),
    steps=("steps", ("4", "steps")),
    checkpoint=("model", ("1", "checkpoint")),
)
SEED = [("4", "seed"), ("4", "control_after_generate")]
WORDS = [("8", "text"), ("8", "pinned")]

# Subgraphs, each also a blueprint of this name. columns: ids of the nodes inside. inputs: see above. own: widgets that
# are shown outside but stay those of the nodes inside, so that what acts on them there (a seed's control, words that
# come in while they are written) is seen outside too.
SUBGRAPHS = {
    "InternVL-U Text to Image": {
        "columns": [["1"], ["2"], ["3", "4"], ["5"]],
        "inputs": DRAW,
        "own": SEED,
        "description": "Draws a picture from a prompt with InternVL-U.",
        "aliases": ["draw", "generate", "text to image", "t2i", "internvl"],
    },
    "InternVL-U Reason then Draw": {
        "columns": [["1", "3"], ["8"], ["2"], ["4"], ["5"]],
        "inputs": {**DRAW, "prompt": ("prompt", ("8", "prompt"))},
        "own": [*SEED, *WORDS],
        "description": "Lets InternVL-U think in words about a prompt, then draws. The words can be changed.",
        "aliases": ["think", "chain of thought", "draw", "text to image", "internvl"],
    },
    "InternVL-U Edit": {
        "columns": [["1", "3"], ["2"], ["4"], ["5", "10"]],
        "inputs": EDIT,
        "own": SEED,
        "description": "Changes a picture as an instruction says, with InternVL-U. The result keeps the size.",
        "aliases": ["change", "instruction", "image edit", "internvl"],
    },
    "InternVL-U Reason then Edit": {
        "columns": [["1", "3"], ["8"], ["2"], ["4"], ["5", "10"]],
        "inputs": {
            **EDIT,
            "image": ("picture", ("8", "image1"), ("3", "image")),
            "prompt": ("what to change", ("8", "prompt")),
        },
        "own": [*SEED, *WORDS],
        "description": "Lets InternVL-U think in words about an instruction, then changes the picture. The words can "
        "be changed.",
        "aliases": ["think", "chain of thought", "image edit", "internvl"],
    },
    "InternVL-U Ask": {
        "columns": [["1"], ["8"]],
        "inputs": inputs(
            image=("picture", ("8", "image1")),
            question=("question", ("8", "question")),
            checkpoint=("model", ("1", "checkpoint")),
        ),
        "own": [],
        "description": "Answers a question about a picture with InternVL-U.",
        "aliases": ["question", "caption", "describe", "vqa", "ocr", "internvl"],
    },
    "InternVL-U Find Objects": {
        "columns": [["1", "14"], ["8"], ["11"]],
        "inputs": inputs(
            image=("picture", ("8", "image1"), ("11", "image")),
            thing=("what to find", ("14", "replace")),
            checkpoint=("model", ("1", "checkpoint")),
        ),
        "own": [],
        "description": "Finds a thing in a picture with InternVL-U: its boxes drawn, and a mask of them.",
        "aliases": ["detect", "segmentation", "grounding", "bounding box", "mask", "internvl"],
    },
}

# Each is "workflows/TITLE.json", the titles being what the template browser shows, and "workflows/api/NAME.json".
# prompt: API format by node id. columns: node ids from left to right; an entry of SUBGRAPHS stands for its nodes.
# groups: titles of the columns, in graphs that show all their nodes. versions: of those with the same word here, one
# fits a ComfyUI, see support.workflows.is_for_this.
WORKFLOWS = {
    "toy_world": {
        "title": "01 InternVL-U Toy without a download",
        "prompt": {
            "1": loader(toy.CHECKPOINT.name),
            "2": encode("a red heart in the bottom right"),
            "3": empty(**toy.SIZE),
            "4": sampler(["3", 0]),
            "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
            "9": node("ImageScaleBy", image=["5", 0], upscale_method="nearest-exact", scale_by=6.0),
            "6": node("SaveImage", images=["9", 0], filename_prefix="InternVL-U toy"),
            "11": loader(toy.CHECKPOINT.name),
            "8": ask("describe the picture", 64, "11", ("5", 0)),
            "12": node("PreviewAny", source=["8", 0]),
        },
        "columns": [["InternVL-U Text to Image"], ["9", "6"], ["InternVL-U Ask", "12"]],
        "renamed": {"InternVL-U Ask": {"1": "11"}},
        "note": "# The toy world\n\nRuns in seconds on any computer: press *Run*. The checkpoint of 13 MB that comes "
        "with the pack draws the prompt, then looks at its own picture.\n\n"
        "It was trained on flat shapes of 64 × 64 pixels. Shapes: circle, square, triangle, diamond, star, cross, "
        "heart, ring. Colors: red, orange, yellow, green, cyan, blue, purple, black. It knows places (*in the top "
        "left*), relations (*left of*) and numbers to four.\n\nFor real pictures open *02 InternVL-U Draw*.\n",
    },
    "text_to_image": {
        "title": "02 InternVL-U Draw",
        "prompt": {
            "1": loader(),
            "2": encode(CAT),
            "3": empty(1024, 1024),
            "4": sampler(["3", 0]),
            **decoded("InternVL-U"),
        },
        "columns": [["InternVL-U Text to Image"], ["6"]],
        "note": "# Draw\n\nWrite what to draw and press *Run*. Sizes are multiples of 16; the model likes 512 to 1024 "
        "pixels a side.\n" + MODEL,
    },
    "edit": {
        "title": "03 InternVL-U Edit",
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "2": encode(SKY, **SEEN),
            "3": fitted(),
            "4": sampler(["3", 1]),
            **decoded("InternVL-U edit", restore=True),
        },
        "columns": [["7"], ["InternVL-U Edit"], ["6"]],
        "note": "# Edit\n\nChoose a picture, say what to change and press *Run*. The result has the picture's own "
        "size.\n" + MODEL,
    },
    "reason_then_draw": {
        "title": "04 InternVL-U Reason then draw",
        "prompt": {
            "1": loader(),
            "8": reason(HOPE),
            "2": encode("", reasoning=["8", 0]),
            "3": empty(1024, 1024),
            "4": sampler(["3", 0]),
            **decoded("InternVL-U reasoned"),
        },
        "columns": [["InternVL-U Reason then Draw"], ["6"]],
        "note": "# Reason, then draw\n\nThe model first thinks in words about the prompt; they appear in the node "
        "while they are written. Change them, and the next run draws from yours.\n" + MODEL,
    },
    "reason_then_edit": {
        "title": "05 InternVL-U Reason then edit",
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": reason(SKY, image1=["7", 0]),
            "2": encode("", vae=["1", 2], reasoning=["8", 0]),
            "3": fitted(),
            "4": sampler(["3", 1]),
            **decoded("InternVL-U reasoned edit", restore=True),
        },
        "columns": [["7"], ["InternVL-U Reason then Edit"], ["6"]],
        "note": "# Reason, then edit\n\nThe model looks at the picture and thinks in words about what to change, then "
        "changes it. Change the words, and the next run edits from yours.\n" + MODEL,
    },
    "ask": {
        "title": "06 InternVL-U Ask about a picture",
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": ask("What is in the picture?", 1024),
            "12": node("PreviewAny", source=["8", 0]),
        },
        "columns": [["7"], ["InternVL-U Ask"], ["12"]],
        "note": "# Ask about a picture\n\nChoose a picture, write a question and press *Run*.\n" + MODEL,
    },
    "find_objects": {
        "title": "07 InternVL-U Find objects",
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "14": node("StringReplace", string=FIND, find="THING", replace="the house"),
            "8": ask(["14", 0], 256),
            "11": node("InternVLUBoxes", answer=["8", 0], image=["7", 0]),
            "12": node("PreviewImage", images=["11", 2]),
            "13": node("MaskPreview", mask=["11", 1]),
        },
        "columns": [["7"], ["InternVL-U Find Objects"], ["12", "13"]],
        "note": "# Find objects\n\nName a thing and press *Run*: its boxes are drawn on the picture, and the mask of "
        "them can go on to an edit.\n" + MODEL,
    },
    "edit_with_mask": {
        "title": "08 InternVL-U Edit under a mask",
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": node("LoadImageMask", image="internvlu_house_mask.png", channel="red"),
            "2": encode("Turn the house into a small castle", **SEEN),
            "3": fitted(mask=["8", 0]),
            "4": sampler(["3", 1]),
            **decoded("InternVL-U masked edit", restore=True),
        },
        "columns": [["1"], ["7", "8"], ["2", "3"], ["4"], ["5", "10", "6"]],
        "groups": ["Load", "Pictures", "Describe", "Draw", "Save"],
        "note": "# Edit under a mask\n\nOnly what is white in the mask may change; every other pixel stays as it was, "
        "bit by bit. **Load Image** has a mask output too: paint it with the mask editor.",
    },
    "two_references": {
        "title": "09 InternVL-U Draw from two pictures",
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": picture("poster"),
            "2": encode(
                "Hang the second picture as a poster on the wall of the house in the first", **SEEN, image2=["8", 0]
            ),
            "3": empty(1024, 768),
            "4": sampler(["3", 0]),
            **decoded("InternVL-U two references"),
        },
        "columns": [["1"], ["7", "8"], ["2"], ["3", "4"], ["5", "6"]],
        "groups": ["Load", "Pictures", "Describe", "Draw", "Save"],
        "note": "# Draw from two pictures\n\nUp to eight pictures of any sizes. `<image>` in the prompt says where "
        "each belongs; without it they stand in front, in order.",
    },
    "image_to_image": {
        "title": "10 InternVL-U Image to image",
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "2": encode("A painting of a house in the hills, in warm colors"),
            "3": fitted(),
            "8": node("VAEEncode", pixels=["3", 0], vae=["1", 2]),
            "4": sampler(["8", 0], denoise=0.6),
            **decoded("InternVL-U image to image", restore=True),
        },
        "columns": [["1"], ["7"], ["2", "3", "8"], ["4"], ["5", "10", "6"]],
        "groups": ["Load", "Picture", "Describe", "Draw", "Save"],
        "note": "# Image to image\n\nThe picture's latent is noised as far as `denoise` says, and drawn anew from "
        "there. The model does not look at the picture otherwise; for that, use *03 InternVL-U Edit*.",
    },
    "second_pass": {
        "title": "11 InternVL-U Second pass",
        "prompt": {
            "1": loader(),
            "2": encode(CAT),
            "3": empty(512, 512),
            "7": sampler(["3", 0]),
            "8": node("LatentUpscaleBy", samples=["7", 0], upscale_method="bicubic", scale_by=2.0),
            "4": sampler(["8", 0], denoise=0.5),
            **decoded("InternVL-U second pass"),
        },
        "columns": [["1"], ["2"], ["3", "7"], ["8", "4"], ["5", "6"]],
        "groups": ["Load", "Describe", "First pass", "Second pass", "Save"],
        "note": "# A second pass\n\nDrawn small, its latent doubled, then drawn on: the composition of the small "
        "picture with the detail of the large one.",
    },
    "caption_batch": {
        "title": "12 InternVL-U Caption a folder",
        "prompt": {
            "1": loader(),
            "7": node("LoadImageDataSetFromFolder", folder="internvlu_captions"),
            "12": ask("Describe the picture in one sentence.", 128),
        },
        "columns": [["1", "7"], ["12"]],
        "groups": ["Load", "Caption"],
        "note": "# Caption a folder\n\nPut pictures into a folder in ComfyUI's `input` folder and choose it. They come "
        "as a list, and **Ask** answers all together, each for itself. Connected as a batch, they would belong to one "
        "question.",
    },
    "lora": {
        "title": "13 InternVL-U LoRA",
        "prompt": {
            "1": loader(),
            "7": node("InternVLUCLIP", vlm=["1", 1]),
            "8": node(
                "LoraLoader",
                model=["1", 0],
                clip=["7", 0],
                lora_name="internvl_u_lora.safetensors",
                strength_model=1.0,
                strength_clip=1.0,
            ),
            "2": encode(CAT, vlm=["8", 1]),
            "3": empty(1024, 1024),
            "4": sampler(["3", 0], model=["8", 0]),
            **decoded("InternVL-U LoRA"),
        },
        "columns": [["1", "7", "8"], ["2"], ["3", "4"], ["5", "6"]],
        "groups": ["Load", "Describe", "Draw", "Save"],
        "bypassed": {"8": {"lora_name": ""}},  # in the graph, as the file is the user's own
        "note": "# LoRA\n\nThe stock loader, for adapters of the image generator, of the language model, or of both. "
        "It is bypassed: choose your file in it, then select it and press Ctrl+B. Every `vlm` input takes its CLIP.",
    },
    "ksampler": {
        "title": "14 InternVL-U Stock KSampler",
        "prompt": {
            "1": loader(),
            "7": node("InternVLUCLIP", vlm=["1", 1]),
            "2": node("CLIPTextEncode", clip=["7", 0], text=CAT),
            "8": node("CLIPTextEncode", clip=["7", 0], text=""),
            "3": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
            "4": node(
                "KSampler",
                model=["1", 0],
                positive=["2", 0],
                negative=["8", 0],
                latent_image=["3", 0],
                seed=42,
                steps=20,
                cfg=4.5,
                sampler_name="euler",
                scheduler="simple",
                denoise=1.0,
            ),
            **decoded("InternVL-U KSampler"),
        },
        "columns": [["1", "7"], ["2", "8"], ["3", "4"], ["5", "6"]],
        "groups": ["Load", "Describe", "Draw", "Save"],
        "note": "# Stock nodes\n\nAfter the loader everything is ComfyUI's own. An empty negative text is the blank "
        "prompt that the model was trained with.",
    },
    "advanced_sampling": {
        "title": "15 InternVL-U Sampler in its parts",
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "2": encode(SKY, **SEEN),
            "3": fitted(),
            "11": node(
                "InternVLUGuider",
                model=["1", 0],
                full=["2", 0],
                partial=["2", 1],
                unconditional=["2", 2],
            ),
            "12": node("InternVLUSamplerSelect"),
            "13": node("InternVLUScheduler", steps=20, shift=3.0, denoise=1.0),
            "14": node("RandomNoise", noise_seed=42),
            "4": node(
                "SamplerCustomAdvanced",
                noise=["14", 0],
                guider=["11", 0],
                sampler=["12", 0],
                sigmas=["13", 0],
                latent_image=["3", 1],
            ),
            **decoded("InternVL-U advanced", restore=True),
        },
        "columns": [["1", "7"], ["2", "3"], ["11", "14", "12", "13"], ["4"], ["5", "10", "6"]],
        "groups": ["Load", "Describe", "Guide", "Draw", "Save"],
        "note": "# The sampler in its parts\n\nThe same as **InternVL-U Sample**, to be mixed with other samplers, "
        "schedules and guiders.",
    },
    "train_an_adapter": training(
        "16 InternVL-U Train an adapter",
        "For ComfyUI 0.33. In 0.3.75 open *17*.",
        (0, 1, 2),
        {
            "quantized_backward": False,
            "checkpoint_depth": 1,
            "offloading": False,
            "bucket_mode": False,
            "bypass_mode": False,
        },
        {"bypass": False},
    ),
    "train_an_adapter_0_3_75": training(
        "17 InternVL-U Train an adapter in ComfyUI 0.3.75",
        "For ComfyUI 0.3.75. In 0.33 open *16*.",
        (1, 2, 3),
        {},
        {},
    ),
}
SHOWN_ONLY = {"PreviewAny"}  # what the graph has for people; the API's answer holds the text anyway


def subgraphs_in(spec: dict) -> list[str]:
    return [key for column in spec["columns"] for key in column if key in SUBGRAPHS]
