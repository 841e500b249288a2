"""The official sampling: as one node, as its parts for stock samplers, and as a patch on the MODEL."""

import comfy.samplers
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from .comfy.guider import AUTOMATIC, DualGuider, limit_guidance, patch_model
from .comfy.images import from_pil
from .comfy.sampler import denoise_sigmas, sample_dpmpp_2m, sample_latent, shift_of
from .plot import plot_guidance
from .schema import CATEGORY, MAX_SEED, aliases


def scale_inputs() -> list[io.Float.Input]:
    limits = {"default": AUTOMATIC, "min": AUTOMATIC, "max": 100.0, "step": 0.1}
    return [
        io.Float.Input(
            "all_scale",
            display_name="prompt strength",
            tooltip="The guidance scale of the prompt. Below 0 it is automatic: the checkpoint's own value (4.5 in the "
            "released one, 3.5 with reasoning).",
            **limits,
        ),
        io.Float.Input(
            "partial_scale",
            display_name="image strength",
            tooltip="The guidance scale of the pictures. Below 0 it is automatic: the checkpoint's own value (2 in the "
            "released one, 1.5 with reasoning). No effect without pictures.",
            **limits,
        ),
    ]


def conditioning_inputs() -> list[io.Conditioning.Input]:
    names = {"full": "positive", "partial": "images only", "unconditional": "negative"}
    return [
        io.Conditioning.Input(name, display_name=label, tooltip="From InternVL-U Encode.")
        for name, label in names.items()
    ]


def model_input() -> io.Model.Input:
    return io.Model.Input("model", tooltip="From InternVL-U Load.")


def schedule_inputs() -> list:
    return [
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=1000,
            tooltip="Steps of the sampler. More steps take longer and give finer detail.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the latent is drawn anew: 1 all of it, less keeps more of it.",
        ),
    ]


class InternVLUSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        steps, denoise = schedule_inputs()
        return io.Schema(
            node_id="InternVLUSampler",
            display_name="InternVL-U Sample",
            **aliases("ksampler", "sample", "draw", "generate image", "text to image", "any2any"),
            category=CATEGORY,
            description="Draws with the official sampler, DPM-Solver++(2M), and the official three-branch guidance.",
            inputs=[
                model_input(),
                *conditioning_inputs(),
                io.Latent.Input("latent_image", tooltip="Its size is the size of the picture."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="The seed of the noise.",
                ),
                steps,
                *scale_inputs(),
                denoise,
                io.Boolean.Input(
                    "guidance_plot",
                    display_name="guidance plot",
                    default=False,
                    optional=True,
                    tooltip="Draw how strongly the prompt and the pictures guided each step.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="For VAE Decode."),
                io.Image.Output(
                    display_name="guidance_plot", tooltip="The plot. While it is off, nodes that use it are skipped."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, full, partial, unconditional, latent_image, guidance_plot=False, **inputs) -> io.NodeOutput:
        guider, trace = DualGuider(model), [] if guidance_plot else None
        scales = inputs["all_scale"], inputs["partial_scale"]
        guider.set_conds(full, partial, unconditional, *scales, trace)
        shift = shift_of(model.get_model_object("model_sampling"))
        sigmas = denoise_sigmas(inputs["steps"], shift, inputs["denoise"])
        latent = sample_latent(guider, latent_image, sigmas, inputs["seed"])
        if trace is None:
            return io.NodeOutput(latent, ExecutionBlocker(None))
        used = guider.guidance
        strengths = [pair.tolist() for pair in trace]
        plot = from_pil(plot_guidance(strengths, sigmas.tolist(), used.all_scale, used.partial_scale))
        return io.NodeOutput(latent, plot, ui=ui.PreviewImage(plot, cls=cls))


class InternVLUGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUGuider",
            display_name="InternVL-U Guider",
            **aliases("cfg", "guidance", "custom sampling"),
            category=CATEGORY,
            description="The official three-branch guidance, for SamplerCustomAdvanced.",
            inputs=[model_input(), *conditioning_inputs(), *scale_inputs()],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, full, partial, unconditional, all_scale, partial_scale) -> io.NodeOutput:
        guider = DualGuider(model)
        guider.set_conds(full, partial, unconditional, all_scale, partial_scale)
        return io.NodeOutput(guider)


class InternVLUGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUGuidance",
            display_name="InternVL-U Guidance",
            **aliases("cfg", "patch model", "ksampler guidance"),
            category=CATEGORY,
            description="Gives a stock KSampler or CFGGuider the three-branch guidance. Connect positive and negative "
            "of InternVL-U Encode to it; its cfg is the prompt strength.",
            inputs=[
                model_input(),
                conditioning_inputs()[1],
                scale_inputs()[1],
            ],
            outputs=[io.Model.Output(tooltip="For a KSampler or a CFGGuider.")],
        )

    @classmethod
    def execute(cls, model, partial, partial_scale) -> io.NodeOutput:
        return io.NodeOutput(patch_model(model, partial, partial_scale))


class InternVLUGuidanceRange(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        limits = {"min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="InternVLUGuidanceRange",
            display_name="InternVL-U Guidance Range",
            **aliases("guidance interval", "limited interval", "cfg range", "faster"),
            category=CATEGORY,
            description="Guides only a part of the steps. The others follow the prompt alone, in a half or a third of "
            "the time.",
            inputs=[
                model_input(),
                io.Float.Input(
                    "start_percent",
                    display_name="start",
                    default=0.0,
                    **limits,
                    tooltip="The first guided step, as a fraction of the noise schedule.",
                ),
                io.Float.Input(
                    "end_percent",
                    display_name="end",
                    default=1.0,
                    **limits,
                    tooltip="Where the guidance ends. 1 guides to the last step; less is faster.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For InternVL-U Sample, InternVL-U Guider, a KSampler or a CFGGuider.")],
        )

    @classmethod
    def execute(cls, model, start_percent, end_percent) -> io.NodeOutput:
        return io.NodeOutput(limit_guidance(model, start_percent, end_percent))


class InternVLUScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        steps, denoise = schedule_inputs()
        return io.Schema(
            node_id="InternVLUScheduler",
            display_name="InternVL-U Scheduler",
            **aliases("sigmas", "shift", "noise schedule"),
            category=CATEGORY,
            description="The official noise levels, for SamplerCustomAdvanced.",
            inputs=[
                steps,
                io.Float.Input(
                    "shift",
                    default=3.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Above 1, more of the steps go to high noise, where the composition is decided.",
                ),
                denoise,
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, steps, shift, denoise) -> io.NodeOutput:
        return io.NodeOutput(denoise_sigmas(steps, shift, denoise))


class InternVLUSamplerSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUSamplerSelect",
            display_name="InternVL-U Sampler Select",
            **aliases("dpm++ 2m", "dpmpp_2m", "sampler"),
            category=CATEGORY,
            description="The official sampler, DPM-Solver++(2M) for flow models, for SamplerCustomAdvanced.",
            inputs=[],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_dpmpp_2m))
