"""Stock nodes on InternVL-U: the rows of docs/interop.md, and what asserts each of them.

A new row goes into ROWS, and its check into tests/comfy/test_interop_<part>.py; scripts/write_interop.py then writes
the document.
"""

from collections.abc import Callable
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "interop.md"

SAMPLERS = [
    "euler", "euler_ancestral", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ddpm",
    "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_ancestral", "gradient_estimation", "er_sde",
    "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
]  # fmt: skip
SCHEDULERS = [
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
]  # fmt: skip

# {part: {stock nodes: result}}, as the document shows them.
ROWS: dict[str, dict[str, str]] = {
    "Sampling": {
        f"KSampler with {len(SAMPLERS)} samplers": "the same sampler over the core, ≤ 1e-4",
        f"KSampler with all {len(SCHEDULERS)} schedulers": "Euler over the core on the same noise levels",
        "KSampler": "2 branches a step (full, unconditional) in one forward; Euler over the core, ≤ 1e-5",
        "KSampler, cfg 1": "1 forward a step; the full branch alone",
        "KSampler on an edit": "2 branches a step (full with its reference, unconditional); equals the core",
        "KSamplerAdvanced, two stages": "equals one KSampler",
        "SamplerCustom": "equals KSampler, bit by bit",
        "SamplerCustomAdvanced with CFGGuider": "equals KSampler, bit by bit",
        "SamplerCustomAdvanced with BasicGuider": "1 forward a step; the full branch alone",
        "DualCFGGuider, regular": (
            "3 branches a step; its formula over the core. Guides fully above t = 930, where InternVL-U "
            "Guider guides less"
        ),
        "DualCFGGuider, nested": (
            "3 branches a step; its formula over the core. Guides fully above t = 930, where InternVL-U "
            "Guider guides less"
        ),
        "PerpNegGuider": "3 branches a step; its formula over the core",
        "SplitSigmas, DisableNoise: two SamplerCustomAdvanced on our GUIDER": (
            "the core stage by stage; the second one starts at first order"
        ),
        "SamplerDPMPP_2M_SDE (eta 0, midpoint) on our SIGMAS": "equals InternVL-U Sampler Select, ≤ 1e-5",
    },
    "Guidance": {
        "RescaleCFG": "its formula over the core; 2 branches a step",
        "APG": "its formula over the core; 2 branches a step",
        "TCFG": "its formula over the core; 2 branches a step",
        "Mahiro": "its formula over the core; 2 branches a step",
        "CFGNorm": "its formula over the core; 2 branches a step",
        "CFGZeroStar": "its formula over the core; 2 branches a step",
        "RenormCFG": "its formula over the core; 2 branches a step",
        "FreSca": "its formula over the core; 2 branches a step",
        "Epsilon Scaling": "its formula over the core; 2 branches a step",
        "TemporalScoreRescaling": "its formula over the core; 2 branches a step",
        "SkipLayerGuidanceDiT": "a third forward a step, without the named blocks; its formula over the core",
        "SkipLayerGuidanceDiTSimple": "2 forwards a step, the unconditional one without the named blocks",
    },
    "Model": {
        "EasyCache": "threshold 0: nothing changes; above: fewer forwards",
        "LazyCache": "threshold 0: nothing changes; above: fewer forwards",
        "ModelSamplingSD3": "another shift: Euler over the core on its noise levels",
        "ModelSamplingAuraFlow": "equals ModelSamplingSD3 of the same shift",
        "ModelSamplingFlux": "equals ModelSamplingSD3 of the shift exp(max_shift)",
        "ModelComputeDtype": "fp32: nothing changes; bf16: the core in bf16, ≤ 5%",
        "TorchCompileModel, inductor": (
            "equals the uncompiled model, ≤ 1% (the fused time embedding rounds differently)"
        ),
        "ContextWindowsManual over the width, without causal_window_fix": (
            "a forward per window; means where they overlap. The fix, in newer ComfyUIs, makes widths odd, "
            "which are refused"
        ),
        "ModelMergeSimple": "the core with weights merged likewise",
        "ModelMergeBlocks (its input ratio counts for all blocks)": "the core with weights merged likewise",
        "ModelMergeSubtract, ModelMergeAdd": "the core with weights merged likewise",
        "LoraLoaderModelOnly": "the core with the adapter added to its weights (test_lora.py: all spellings)",
        "CreateHookLoraModelOnly, ConditioningSetProperties": "the adapter acts on the hooked branch alone",
        "TrainLoraNode, LoraModelLoader": "learns a picture: from its noise the adapter draws what is nearer to it",
    },
    "Latents": {
        "VAEEncode, VAEDecode": "equal the core's VAE, ≤ 1e-5; a batch of pictures is a batch of latents",
        "VAEEncodeTiled, VAEDecodeTiled in one tile": "equal the untiled nodes",
        "VAEEncodeTiled, VAEDecodeTiled in many tiles": "near the untiled nodes (the VAE looks beyond a tile)",
        "img2img: VAEEncode, KSampler with denoise < 1": "Euler over the core from the mixed start",
        "SetLatentNoiseMask": "stock masking over the core; outside the mask the latent stays",
        "DifferentialDiffusion with a soft mask": "its masking over the core",
        "InpaintModelConditioning": "equals SetLatentNoiseMask (the model has no inpainting channels)",
        "LatentUpscale, second KSampler": "the frame interpolated; the second pass equals the core's",
        "LatentUpscaleBy, second KSampler": "the same",
        "RepeatLatentBatch": "n pictures from one noise tensor, as the core draws them; 2 branches a step",
        "LatentFromBatch": "draws one picture of a batch again, alone",
        "LatentBatch": "joins latents of two pictures; img2img of both equals the core's",
        "EmptySD3LatentImage": "equals InternVL-U Empty Latent, bit by bit",
        "EmptyLatentImage": "equals InternVL-U Empty Latent, bit by bit",
        "EmptyHunyuanLatentVideo of length 1": "equals InternVL-U Empty Latent, bit by bit",
        "Previews (latent2rgb)": "one a step, of the latent's shape, not flat",
        "Previews (TAESD, lighttaew2_1 in models/vae_approx)": "its picture of the latent",
    },
    "Conditioning": {
        "CLIPTextEncode with InternVL-U CLIP": "equals Encode's full; an empty text its unconditional",
        "TextEncodeQwenImageEdit with image and vae": (
            "read as by Encode; the reference has a megapixel, cut to whole patches"
        ),
        "ReferenceLatent, once and twice": "the core with one and two references",
        "ConditioningZeroOut": "the core with hidden states of zero",
        "ConditioningCombine": "the mean of both predictions, of one forward",
        "ConditioningConcat": "the second one's tokens behind the first's, as text",
        "ConditioningAverage": "the core with hidden states blended token by token",
        "ConditioningSetTimestepRange": "each conditioning acts in its own steps",
        "ConditioningSetMask (default area), two regions": "each region by its own conditioning",
        "ConditioningSetArea (multiples of 16)": "the area drawn as a picture of its own, blended in",
        "ConditioningSetAreaPercentageVideo (temporal 1, z 0)": "the same, in place of …Percentage",
    },
    "Cannot work": {
        "PerturbedAttentionGuidance": (
            "no effect, at the cost of a third forward: it patches a U-Net's attention, which this model does not have"
        ),
        "SelfAttentionGuidance": "no effect: it patches a U-Net's attention, which this model does not have",
        "HyperTile": "no effect: it patches a U-Net's attention, which this model does not have",
        "TomePatchModel": "no effect: it patches a U-Net's attention, which this model does not have",
        "FreeU_V2": "KeyError 'model_channels': it is for U-Nets",
        "ConditioningSetMask, “mask bounds”": (
            "ValueError in ComfyUI, as with every 5-D latent (Qwen-Image, Wan). Use the default area"
        ),
        "ConditioningSetAreaPercentage": (
            "IndexError in ComfyUI, as with every 5-D latent. Use ConditioningSetArea or …PercentageVideo"
        ),
        "EmptyHunyuanLatentVideo, length > 1": "an error: InternVL-U draws single pictures",
        "VAEEncodeForInpaint": (
            "TypeError in older ComfyUIs, 0.3.75 too, as with Qwen-Image's and Wan's VAE: use "
            "SetLatentNoiseMask or InpaintModelConditioning. In newer ones it equals VAEEncode of the "
            "picture with a grey hole, and its mask"
        ),
        "LatentFlip, x-axis": "no effect: it turns the single frame",
        "LatentFlip, y-axis": "flips top and bottom instead of left and right",
        "LatentRotate": "reads a latent's frame axis as its height; a sampler then refuses the size",
        "LatentCrop": "reads a latent's frame axis as its height: crops rows by the width, and no columns",
        "SetLatentNoiseMask with a batch of masks": "ComfyUI reads them as frames: all get their mean",
    },
}

HEAD = """# Stock nodes on InternVL-U

Written by `scripts/write_interop.py` from the rows in `tests/support/interop.py`; do not edit it. `tests/comfy/` has a
test of each row, `test_interop_*.py`: on a real ComfyUI server with a tiny checkpoint, it asserts on tensors and on the
number of network calls. "Equals" is a relative difference of at most 1e-5 where nothing else is said; "the core" is
`internvlu_core` without ComfyUI; a forward is a network call.
"""
WHY = """
Why: a latent here is `[B, 16, 1, h, w]`, with one frame, as with Qwen-Image, whose VAE this is. Stock nodes that were
written for `[B, C, h, w]` take the frame axis for the height. The network is a transformer with two streams: a node
that patches the blocks of a U-Net finds nothing to patch. Except for InternVL-U Sample, Guider and Guidance, all
samplers and guiders use ordinary CFG with two branches, for which the model was not tuned.
"""


class Checks:
    """The checks of one part's rows. As a decorator it adds one:

    row = Checks("Sampling")

    @row("SamplerCustom")
    def check_sampler_custom(bench): …
    """

    def __init__(self, part: str):
        self.part, self.checks = part, {}

    def __call__(self, nodes: str) -> Callable:
        if nodes not in ROWS[self.part] or nodes in self.checks:
            raise ValueError(f"{nodes!r} is not a row of {self.part!r}, or has a check already")

        def add(check: Callable) -> Callable:
            self.checks[nodes] = check
            return check

        return add


def document() -> str:
    """What docs/interop.md has to say."""
    parts = []
    for part, rows in ROWS.items():
        lines = [f"| {nodes} | {result} |" for nodes, result in rows.items()]
        parts.append("\n".join([f"\n## {part}\n", "| stock nodes | result |", "|---|---|", *lines, ""]))
    return HEAD + "".join(parts) + WHY
