"""Every clever piece against a slow, obvious twin, on random tiny networks with random weights.

The twins are written from the model's description, docs/model.md, not from the code under test, and read the same
state dict where there are weights.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from internvlu_core import InputError, guidance, imaging
from internvlu_core.checkpoints.config import Config
from internvlu_core.decoding import TextSettings, generate_tokens
from internvlu_core.models.language import KVCache
from internvlu_core.models.mmdit import MMDiT
from internvlu_core.models.rope import joint_positions
from internvlu_core.models.vae import VAE
from internvlu_core.models.vision import InternViT, fold_patches
from internvlu_core.sampling import dpmpp_2m, flow_sigmas, sigma_to_timestep
from support.checkpoints import CHECKPOINT
from support.networks import randomise, tiny_language
from support.tensors import noise, relative

CONFIG = Config.read(CHECKPOINT)


# Positions (docs/model.md, "Position encoding")


def slow_positions(latent_grids, image_mask, image_grids, latent_scale, vit_scale):
    """Token by token."""

    def side(index, count, scale):
        first = -(count - count // 2)
        if scale == 1 or count == 1:
            return first + index
        new_first, new_last = -math.trunc((count - count // 2) / scale), math.trunc((count // 2) / scale) - 1
        return new_first + index * (new_last - new_first) / (count - 1)

    positions, highest = [], -math.inf
    for frame, (frames, h, w) in enumerate(latent_grids):
        assert frames == 1
        for row in range(h):
            for column in range(w):
                positions.append([frame, side(row, h, latent_scale), side(column, w, latent_scale)])
    now = math.trunc(max(max(position) for position in positions)) + 1
    grids = iter(image_grids)
    grid, index, highest = None, 0, -math.inf
    for is_image in image_mask.tolist():
        if not is_image:
            positions.append([now, now, now])
            now += 1
            continue
        if grid is None:
            grid = next(grids)
        _, h, w = grid
        row, column = divmod(index, w)
        positions.append([now, side(row, h, vit_scale), side(column, w, vit_scale)])
        highest = max(highest, *positions[-1])
        index += 1
        if index == h * w:
            now = math.trunc(highest) + 1
            grid, index, highest = None, 0, -math.inf
    return torch.tensor(positions, dtype=torch.float32)


def mask_of(*runs) -> torch.Tensor:
    """Numbers are runs of text, grids are pictures."""
    parts = [torch.full((run if isinstance(run, int) else math.prod(run),), not isinstance(run, int)) for run in runs]
    return torch.cat(parts)


POSITIONS = {
    "no image": ([(1, 4, 6)], [7]),
    "odd sides": ([(1, 5, 3)], [2, (1, 3, 5), 4]),
    "even sides": ([(1, 4, 2)], [2, (1, 4, 4), 4]),
    "references": ([(1, 4, 4), (1, 3, 7), (1, 6, 2)], [3, (1, 4, 4), 1, (1, 4, 4), 2]),
    "adjacent tiles": ([(1, 2, 2)], [1, (1, 4, 4), (1, 4, 4), (1, 2, 3), 5]),
    "one index": ([(1, 1, 1), (1, 1, 4)], [2, (1, 1, 1), 1, (1, 1, 5), 1, (1, 3, 1), 1]),
    "image at both ends": ([(1, 8, 8)], [(1, 2, 2), 3, (1, 5, 5)]),
    "small latents, large image": ([(1, 2, 2)], [1, (1, 16, 16), 3]),
    "large latents": ([(1, 31, 64)], [3, (1, 16, 16), 3]),
}


@pytest.mark.parametrize("vit_scale", [0.25, 1.0, 0.5, 0.3, 2.0])
@pytest.mark.parametrize("latent_scale", [1.0, 0.7])
@pytest.mark.parametrize("layout", POSITIONS)
def test_positions(layout, latent_scale, vit_scale):
    latent_grids, runs = POSITIONS[layout]
    image_grids = [run for run in runs if not isinstance(run, int)]
    arguments = latent_grids, mask_of(*runs), image_grids, latent_scale, vit_scale
    torch.testing.assert_close(joint_positions(*arguments), slow_positions(*arguments), rtol=0, atol=1e-5)


def test_positions_by_hand():
    """One layout written out, so that no shared misreading hides, at the released scale."""
    positions = joint_positions([(1, 2, 3)], mask_of(1, (1, 2, 2), 1), [(1, 2, 2)], 1.0, 0.25)
    assert positions.tolist() == [
        *([0, row, column] for row in (-1, 0) for column in (-2, -1, 0)),
        [1, 1, 1],
        *([2, row, column] for row in (-4, 3) for column in (-4, 3)),
        [4, 4, 4],
    ]


# MMDiT


def slow_mmdit(network, config, x, timestep, context, image_mask, image_grids, references):
    """Both streams computed for every token and blended by a mask; full attention written out."""
    weights = network.state_dict()

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def rms(name, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    def silu(x):
        return x / (1 + torch.exp(-x))

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def tokens(latent):  # channels in (c, ph, pw) order
        n, c, h, w = latent.shape
        p = config.patch_size
        rows = []
        for row in range(0, h, p):
            for column in range(0, w, p):
                rows.append(latent[:, :, row : row + p, column : column + p].reshape(n, c * p * p))
        return torch.stack(rows, dim=1)

    batch, p, width = len(x), config.patch_size, config.hidden_size
    grids = [(1, latent.shape[-2] // p, latent.shape[-1] // p) for latent in (x, *references)]
    positions = slow_positions(grids, image_mask, image_grids, config.latent_scale, config.vit_scale)
    angles = []
    for axis, channels in enumerate(config.rope_axes):
        for pair in range(channels // 2):
            angles.append(positions[:, axis] / 10000 ** (2 * pair / channels))
    rotation = torch.polar(torch.ones(len(positions), len(angles)), torch.stack(angles, dim=1))[:, None]

    def rope(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotation).flatten(-2)

    img = torch.cat([tokens(latent).expand(batch, -1, -1) for latent in (x, *references)], dim=1)
    if config.projector == "mlp2x_gelu":
        context = linear("decoder_projector.2", silu(linear("decoder_projector.0", context)))
    txt = linear("txt_in", rms("txt_norm", context)).expand(batch, -1, -1)
    img = linear("img_in", img)
    is_image = torch.cat([torch.ones(img.shape[1]), torch.zeros(txt.shape[1])])[:, None]
    x_all = torch.cat([img, txt], dim=1)

    def blend(image, text):
        return is_image * image + (1 - is_image) * text

    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    arguments = 1000 * (timestep[:, None] * frequencies)
    temb = torch.cat([arguments.cos(), arguments.sin()], dim=-1)
    temb = linear("time_text_embed.timestep_embedder.linear_1", temb)
    temb = linear("time_text_embed.timestep_embedder.linear_2", silu(temb))

    for layer in range(config.num_layers):
        block = f"transformer_blocks.{layer}"
        modulations = [linear(f"{block}.{stream}_mod.1", silu(temb))[:, None] for stream in ("img", "txt")]
        image, text = (modulation.split(width, dim=-1) for modulation in modulations)
        shift1, scale1, gate1, shift2, scale2, gate2 = (blend(a, b) for a, b in zip(image, text, strict=True))

        y = norm(x_all) * (1 + scale1) + shift1
        heads = (-1, config.num_heads)
        q_gate = blend(linear(f"{block}.attn.to_q", y), linear(f"{block}.attn.add_q_proj", y))
        q_gate = q_gate.unflatten(-1, (config.num_heads, 2, config.head_dim))
        q, gate = q_gate[..., 0, :], q_gate[..., 1, :].flatten(2)
        k = blend(linear(f"{block}.attn.to_k", y), linear(f"{block}.attn.add_k_proj", y))
        v = blend(linear(f"{block}.attn.to_v", y), linear(f"{block}.attn.add_v_proj", y))
        k, v = (t.unflatten(-1, heads[::-1]) for t in (k, v))
        stream = is_image[:, None]
        q = stream * rms(f"{block}.attn.norm_q", q) + (1 - stream) * rms(f"{block}.attn.norm_added_q", q)
        k = stream * rms(f"{block}.attn.norm_k", k) + (1 - stream) * rms(f"{block}.attn.norm_added_k", k)
        scores = torch.einsum("bihd,bjhd->bhij", rope(q), rope(k)) / math.sqrt(config.head_dim)
        out = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)
        out = blend(linear(f"{block}.attn.to_out.0", out), linear(f"{block}.attn.to_add_out", out))
        x_all = x_all + gate1 * (out / (1 + torch.exp(-gate)))

        y = norm(x_all) * (1 + scale2) + shift2
        image, text = (
            linear(f"{block}.{name}_mlp.net.2", gelu(linear(f"{block}.{name}_mlp.net.0.proj", y)))
            for name in ("img", "txt")
        )
        x_all = x_all + gate2 * blend(image, text)

    scale, shift = linear("norm_out.linear", silu(temb))[:, None].split(width, dim=-1)
    out = linear("proj_out", norm(x_all) * (1 + scale) + shift)
    velocity = torch.empty_like(x)
    columns = x.shape[-1] // p
    for index in range(math.prod(grids[0])):
        row, column = divmod(index, columns)
        patch = out[:, index].unflatten(-1, (x.shape[1], p, p))
        velocity[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p] = patch
    return velocity


MMDITS = {
    "released shape": {},
    "odd heads": {"num_heads": 3, "head_dim": 24, "rope_axes": (4, 8, 12), "num_layers": 3},
    "one head": {"num_heads": 1, "head_dim": 16, "rope_axes": (8, 2, 6), "joint_size": 24, "context_size": 24},
    "patch of 1": {"patch_size": 1, "in_channels": 5, "out_channels": 5, "vit_scale": 0.5},
    "patch of 3": {"patch_size": 3, "in_channels": 36, "out_channels": 4, "latent_scale": 0.5},
}


def lively_mmdit(config, seed):
    """Weights with which the text stream, the attention and the gates weigh heavily in the result."""
    network = randomise(MMDiT(config), seed)
    for name, parameter in network.named_parameters():
        if "_mod.1." in name or "norm_out" in name:
            parameter.mul_(3)
        elif ".norm_" in name or "norm_added" in name:
            parameter.mul_(2)
    return network


@pytest.mark.parametrize("references", [[], [(6, 12)], [(12, 6), (6, 6)]], ids=["none", "one", "two"])
@pytest.mark.parametrize("projector", ["identity", "mlp2x_gelu"])
@pytest.mark.parametrize("name", MMDITS)
def test_mmdit_streams(name, projector, references):
    config = replace(CONFIG.mmdit, **MMDITS[name])
    if projector == "mlp2x_gelu":
        config = replace(config, projector=projector, context_size=40)
    network = lively_mmdit(config, len(references))
    channels = config.out_channels
    image_grids = [(1, 4, 4), (1, 2, 3)][: len(references)]
    image_mask = mask_of(3, *(item for grid in image_grids for item in (grid, 2)))
    arguments = (
        noise(2, channels, 6, 12),
        torch.tensor([999.0, 374.0]),
        noise(2 if references else 1, len(image_mask), config.context_size, seed=1),  # per picture, or shared
        image_mask,
        image_grids,
        [noise(1, channels, *size, seed=2 + i) for i, size in enumerate(references)],
    )
    expected = slow_mmdit(network, config, *arguments)
    assert relative(network(*arguments), expected) < 2e-5
    # The twin is worth something only if what it covers matters to the result.
    for stream in ("to_out.0", "to_add_out"):
        changed = lively_mmdit(config, len(references))
        changed.get_parameter(f"transformer_blocks.0.attn.{stream}.weight").mul_(1.01)
        assert relative(changed(*arguments), expected) > 1e-4


def test_mmdit_epsilons():
    """With activations so small that each norm's 1e-6 is felt."""
    network = lively_mmdit(CONFIG.mmdit, 0)
    for name, parameter in network.named_parameters():
        if "_in." in name or any(part in name for part in ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.")):
            parameter.mul_(1e-3)
    context, mask = noise(1, 6, CONFIG.mmdit.context_size, seed=1) * 1e-3, mask_of(6)
    arguments = noise(1, 16, 4, 4), torch.tensor([749.0]), context, mask, [], []
    assert relative(network(*arguments), slow_mmdit(network, CONFIG.mmdit, *arguments)) < 2e-5


def test_latents_off_the_patch_grid_are_refused():
    network = randomise(MMDiT(CONFIG.mmdit))
    with pytest.raises(InputError, match="5 × 4"):
        network(noise(1, 16, 5, 4), torch.tensor([1.0]), noise(1, 2, 128), mask_of(2), [])


def test_timestep_is_rounded_to_the_compute_dtype():
    """937 is 936 in bfloat16, and the network was trained so."""
    embedding = MMDiT(CONFIG.mmdit).time_text_embed
    rounded = embedding.sinusoids(torch.tensor([937.0]), torch.bfloat16)
    assert torch.equal(rounded, embedding.sinusoids(torch.tensor([936.0]), torch.float32))
    assert not torch.equal(rounded, embedding.sinusoids(torch.tensor([937.0]), torch.float32))


# Language model: cached against uncached


def uncached_logits(network, embeddings, tokens):
    """Next-token logits after a prompt and tokens, by one pass over everything."""
    x = embeddings
    if tokens:
        x = torch.cat([x, network.model["embed_tokens"](torch.tensor([tokens]))], dim=1)
    (hidden,) = network(x, (network.config.num_layers,))
    return network.logits(hidden[0, -1])


def uncached_greedy(network, embeddings, stop_ids, max_new_tokens):
    tokens = []
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in stop_ids):
        tokens.append(int(uncached_logits(network, embeddings, tokens).argmax()))
    return tokens


def uncached_beams(network, embeddings, stop_ids, max_new_tokens, num_beams):
    """Textbook beam search; score: mean log probability."""
    beams, finished = [(0.0, [])], []
    for length in range(1, max_new_tokens + 1):
        candidates = []
        for score, tokens in beams:
            log_probs = uncached_logits(network, embeddings, tokens).log_softmax(-1).tolist()
            candidates += [(score + log_prob, [*tokens, token]) for token, log_prob in enumerate(log_probs)]
        candidates.sort(key=lambda candidate: -candidate[0])
        ends = [tokens[-1] in stop_ids or length == max_new_tokens for _, tokens in candidates]
        for (score, tokens), end in list(zip(candidates, ends, strict=True))[:num_beams]:
            if end:
                finished.append((score / length, tokens))
        finished = sorted(finished, key=lambda item: -item[0])[:num_beams]
        beams = [candidate for candidate, end in zip(candidates, ends, strict=True) if not end][:num_beams]
        if not beams or (len(finished) == num_beams and beams[0][0] / length <= finished[-1][0]):
            break
    return finished[0][1]


GROUPS = pytest.mark.parametrize("heads, kv_heads", [(2, 2), (3, 3), (4, 2), (4, 1), (8, 2)])


@GROUPS
def test_cached_logits(heads, kv_heads):
    """Number by number: after a prompt, after each token, for rows that swap, split and widen."""
    vlm = tiny_language(num_heads=heads, num_kv_heads=kv_heads, head_dim=8)
    network = vlm.language_model
    prompt, tokens = noise(1, 5, network.config.hidden_size), [[3, 1, 4], [1, 5, 9], [2, 6, 5]]
    cache = KVCache(network.config, 1, 8, dtype=torch.float32, device="cpu")

    def step(x):
        (hidden,) = network(x, (network.config.num_layers,), cache)
        return network.logits(hidden[:, -1])

    torch.testing.assert_close(step(prompt)[0], uncached_logits(network, prompt, []), rtol=1e-4, atol=1e-5)
    cache.select(torch.tensor([0, 0, 0]))
    logits = step(vlm.embed_generated(torch.tensor([[t[0]] for t in tokens])))
    for row in range(3):
        torch.testing.assert_close(logits[row], uncached_logits(network, prompt, tokens[row][:1]), rtol=1e-4, atol=1e-5)
    rows = torch.tensor([2, 0, 0])
    cache.select(rows)
    logits = step(vlm.embed_generated(torch.tensor([[t[1]] for t in tokens])))
    for row in range(3):
        history = [tokens[rows[row]][0], tokens[row][1]]
        torch.testing.assert_close(logits[row], uncached_logits(network, prompt, history), rtol=1e-4, atol=1e-5)


@GROUPS
@pytest.mark.parametrize("length", [1, 6])
def test_cached_greedy(heads, kv_heads, length):
    vlm = tiny_language(num_heads=heads, num_kv_heads=kv_heads, head_dim=8, seed=heads)
    seen = set()
    for seed in range(6):
        prompt = noise(1, length, vlm.language_model.config.hidden_size, seed=seed)
        expected = uncached_greedy(vlm.language_model, prompt, (7,), 8)
        assert generate_tokens(vlm, prompt, (7,), TextSettings(8)) == expected
        seen.update(expected)
    assert len(seen) > 6  # a model that only repeats itself would test little


@GROUPS
@pytest.mark.parametrize("num_beams", [2, 4])
def test_cached_beams(heads, kv_heads, num_beams):
    vlm = tiny_language(num_heads=heads, num_kv_heads=kv_heads, head_dim=8, seed=heads)
    prompt = noise(1, 4, vlm.language_model.config.hidden_size, seed=num_beams)
    expected = uncached_beams(vlm.language_model, prompt, (7, 11), 7, num_beams)
    assert generate_tokens(vlm, prompt, (7, 11), TextSettings(7, num_beams)) == expected


def test_selected_layers():
    """Index 0 is the embedding, the last the final norm; no layer behind the last selected one matters."""
    network = tiny_language(num_layers=3).language_model
    x = noise(1, 6, network.config.hidden_size)
    states = network(x, (0, 1, 2, 3))
    assert torch.equal(states[0], x)
    for select in ((3, 2), (2, 3), (1,), (0, 3)):
        for state, index in zip(network(x, select), select, strict=True):
            assert torch.equal(state, states[index])
    assert not torch.equal(states[2], states[3])


# Vision


def test_fold_patches():
    for fold, rows, columns in ((2, 4, 6), (1, 3, 2), (3, 6, 3)):
        x = noise(2, rows, columns, 5)
        tokens = []
        for row in range(0, rows, fold):
            for column in range(0, columns, fold):
                group = [x[:, row + r, column + c] for r in range(fold) for c in range(fold)]
                tokens.append(torch.cat(group, dim=-1))
        assert torch.equal(fold_patches(x, fold), torch.stack(tokens, dim=1))


def slow_vit(network, config, pixels):
    weights = network.state_dict()
    p, (n, _, height, width) = config.patch_size, pixels.shape

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, x):
        if config.norm_type == "rms_norm":
            return rms(name, x)
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + config.norm_eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def rms(name, x):
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weights[f"{name}.weight"]

    kernel = weights["embeddings.patch_embedding.weight"].flatten(1)
    patches = [
        pixels[:, :, y : y + p, x : x + p].flatten(1) @ kernel.T + weights["embeddings.patch_embedding.bias"]
        for y in range(0, height, p)
        for x in range(0, width, p)
    ]
    table = weights["embeddings.position_embedding.weight"]
    side = config.image_size // p
    grid = table[1:].T.reshape(1, -1, side, side)
    if (height, width) != (config.image_size, config.image_size):
        grid = F.interpolate(grid, (height // p, width // p), mode="bicubic", align_corners=False)
    x = torch.stack(patches, dim=1) + grid[0].flatten(1).T
    x = torch.cat([(weights["embeddings.class_embedding.weight"] + table[:1]).expand(n, 1, -1), x], dim=1)
    for index in range(config.select_layer):
        layer = f"encoder.layers.{index}"
        q, k, v = linear(f"{layer}.attn.qkv", norm(f"{layer}.norm1", x)).chunk(3, dim=-1)
        if config.qk_norm:
            q, k = rms(f"{layer}.attn.q_norm", q), rms(f"{layer}.attn.k_norm", k)
        size = config.hidden_size // config.num_heads
        heads = []
        for head in range(config.num_heads):
            own = slice(head * size, (head + 1) * size)
            scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(size)
            heads.append(scores.softmax(-1) @ v[..., own])
        x = x + weights[f"{layer}.ls1.weight"] * linear(f"{layer}.attn.proj", torch.cat(heads, dim=-1))
        h = linear(f"{layer}.mlp.fc1", norm(f"{layer}.norm2", x))
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        x = x + weights[f"{layer}.ls2.weight"] * linear(f"{layer}.mlp.fc2", h)
    return fold_patches(x[:, 1:].reshape(n, height // p, width // p, -1), config.fold)


@pytest.mark.parametrize(
    "changes, side",
    [
        ({}, 56),
        ({}, 84),
        ({"num_heads": 2, "qk_norm": True}, 56),
        ({"norm_type": "rms_norm", "qkv_bias": False}, 56),
        ({"select_layer": 1, "fold": 1}, 28),
        ({"norm_eps": 0.1, "qk_norm": True}, 56),
    ],
    ids=["released", "other grid", "qk norm", "rms norm", "earlier layer", "epsilon"],
)
def test_vit(changes, side):
    config = replace(CONFIG.vision, image_size=56, hidden_size=24, mlp_size=40, **changes)
    network = randomise(InternViT(config))
    pixels = noise(2, 3, side, side)
    assert relative(network(pixels), slow_vit(network, config, pixels)) < 1e-5


# VAE: 2-D convolutions against the causal 3-D ones


class SlowVAE:
    """The video network on a video of one frame: kernels of three taps in time, zeros before the first frame."""

    def __init__(self, network, config):
        self.config = config
        self.weights = {}
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 4 and "resample" not in name and "attentions" not in name:
                taps = 3 if tensor.shape[-1] == 3 else 1
                tensor = torch.stack([noise(*tensor.shape, seed=tap) for tap in range(taps - 1)] + [tensor], dim=2)
            self.weights[name] = tensor

    def conv(self, name, x):
        weight = self.weights[f"{name}.weight"]
        frames, side = weight.shape[2] - 1, weight.shape[-1] // 2
        return F.conv3d(F.pad(x, (side, side, side, side, frames, 0)), weight, self.weights[f"{name}.bias"])

    def conv2d(self, name, x, **options):
        """On each frame by itself."""
        n = len(x)
        frames = x.transpose(1, 2).flatten(0, 1)
        out = F.conv2d(frames, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)
        return out.unflatten(0, (n, -1)).transpose(1, 2)

    def norm(self, name, x):
        gamma = self.weights[f"{name}.gamma"].view(-1, 1, 1, 1)
        return x / x.square().mean(1, keepdim=True).sqrt() * gamma

    def activated(self, name, x):
        x = self.norm(name, x)
        return x * torch.sigmoid(x)

    def res(self, name, x):
        h = self.conv(f"{name}.conv1", self.activated(f"{name}.norm1", x))
        h = self.conv(f"{name}.conv2", self.activated(f"{name}.norm2", h))
        return h + (self.conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in self.weights else x)

    def mid(self, name, x):
        x = self.res(f"{name}.resnets.0", x)
        qkv = self.conv2d(f"{name}.attentions.0.to_qkv", self.norm(f"{name}.attentions.0.norm", x))
        q, k, v = qkv.flatten(2).chunk(3, dim=1)
        scores = torch.einsum("nci,ncj->nij", q, k) / math.sqrt(q.shape[1])
        out = torch.einsum("nij,ncj->nci", scores.softmax(-1), v).view_as(x)
        return self.res(f"{name}.resnets.1", x + self.conv2d(f"{name}.attentions.0.proj", out))

    def encode(self, pixels):
        x = self.conv("encoder.conv_in", pixels[:, :, None])
        index = 0
        for level in range(len(self.config.multipliers)):
            for _ in range(self.config.num_res_blocks):
                x = self.res(f"encoder.down_blocks.{index}", x)
                index += 1
            if level + 1 < len(self.config.multipliers):
                x = self.conv2d(f"encoder.down_blocks.{index}.resample.1", F.pad(x, (0, 1, 0, 1)), stride=2)
                index += 1
        x = self.activated("encoder.norm_out", self.mid("encoder.mid_block", x))
        moments = self.conv("quant_conv", self.conv("encoder.conv_out", x))[:, :, 0]
        mode = moments[:, : self.config.latent_channels]
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.config.latents_mean, self.config.latents_std))
        return (mode - mean) / std

    def decode(self, latents):
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.config.latents_mean, self.config.latents_std))
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", (latents * std + mean)[:, :, None]))
        x = self.mid("decoder.mid_block", x)
        for level in range(len(self.config.multipliers)):
            block = f"decoder.up_blocks.{level}"
            for index in range(self.config.num_res_blocks + 1):
                x = self.res(f"{block}.resnets.{index}", x)
            if level + 1 < len(self.config.multipliers):
                x = x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
                x = self.conv2d(f"{block}.upsamplers.0.resample.1", x, padding=1)
        x = self.conv("decoder.conv_out", self.activated("decoder.norm_out", x))
        return x[:, :, 0].clamp(-1, 1)


VAES = {
    "released shape": {},
    "two blocks": {"base_channels": 6, "num_res_blocks": 2, "multipliers": (1, 2, 4, 4)},
    "other levels": {"base_channels": 4, "multipliers": (1, 2, 2), "num_res_blocks": 1},
}


@pytest.mark.parametrize("name", VAES)
def test_vae_convolutions(name):
    config = replace(CONFIG.vae, **VAES[name])
    network = randomise(VAE(config))
    network.decoder.conv_out.weight.mul_(2)  # so that the clamp matters
    twin = SlowVAE(network, config)
    factor = config.scale_factor
    assert (
        relative(network.encode(noise(2, 3, 6 * factor, 4 * factor)), twin.encode(noise(2, 3, 6 * factor, 4 * factor)))
        < 1e-5
    )
    latents = noise(2, config.latent_channels, 5, 4)
    decoded = network.decode(latents)
    assert decoded.shape == (2, 3, 5 * factor, 4 * factor)
    assert 0.1 < (decoded.abs() < 1).float().mean() < 1
    assert relative(decoded, twin.decode(latents)) < 1e-5


# Tiles and reference sizes


def slow_tile_grid(width, height, size, min_tiles, max_tiles):
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if min_tiles <= columns * rows <= max_tiles
    ]
    distance = {grid: abs(width / height - grid[0] / grid[1]) for grid in grids}
    nearest = sorted((g for g in grids if distance[g] == min(distance.values())), key=lambda g: g[0] * g[1])
    large_enough = [(c, r) for c, r in nearest[1:] if width * height > 0.5 * size * size * c * r]
    return large_enough[-1] if large_enough else nearest[0]


SIZES = np.random.default_rng(0).integers(1, 1500, (400, 2)).tolist()
# Squares and thirds of every size meet the tie rule; 3:2 lies between 1:1 and 2:1.
SIZES += [[side * a, side * b] for side in range(20, 700, 17) for a, b in ((1, 1), (1, 2), (2, 1), (3, 2), (3, 1))]


@pytest.mark.parametrize("min_tiles, max_tiles", [(1, 12), (1, 6), (1, 2), (4, 9), (1, 1)])
def test_tile_grid(min_tiles, max_tiles):
    config = replace(CONFIG.processor, min_tiles=min_tiles, max_tiles=max_tiles)
    chosen = {(width, height): imaging.tile_grid(width, height, config, max_tiles) for width, height in SIZES}
    assert chosen == {
        (width, height): slow_tile_grid(width, height, config.tile_size, min_tiles, max_tiles)
        for width, height in SIZES
    }


@pytest.mark.parametrize("thumbnail", ["first", "last", "none"])
def test_tiles_are_cut_row_by_row(thumbnail):
    config = replace(
        CONFIG.processor, tile_size=28, use_thumbnail=thumbnail != "none", thumbnail_first=thumbnail == "first"
    )
    colours = [(10 * i, 255 - 10 * i, 7 * i) for i in range(6)]
    image = Image.new("RGB", (3 * 28, 2 * 28))
    for index, colour in enumerate(colours):
        image.paste(colour, (index % 3 * 28, index // 3 * 28, index % 3 * 28 + 28, index // 3 * 28 + 28))
    tiles = imaging.vit_tiles(image, config, max_tiles=12)
    whole = imaging.vit_tiles(image, config)
    assert whole.shape == (1, 3, 28, 28)
    if thumbnail == "first":
        assert torch.equal(tiles[:1], whole)
        tiles = tiles[1:]
    elif thumbnail == "last":
        assert torch.equal(tiles[-1:], whole)
        tiles = tiles[:-1]
    assert len(tiles) == 6
    for tile, colour in zip(tiles, colours, strict=True):
        for channel, mean, std, level in zip(tile, config.vit_mean, config.vit_std, colour, strict=True):
            # The middle of a tile; at its edge the resizing has nothing to blend either, the size being exact.
            torch.testing.assert_close(channel, torch.full((28, 28), (level / 255 - mean) / std), rtol=0, atol=1e-4)


def slow_reference_size(height, width, factor, min_pixels, max_pixels, longest):
    """docs/model.md, "Image preprocessing", sentence by sentence. None: an error."""
    if min(height, width) < factor or max(height, width) / min(height, width) > 200:
        return None
    h, w = height, width
    if longest is not None and max(h, w) > longest:
        ratio = longest / max(h, w)
        h, w = math.trunc(h * ratio), math.trunc(w * ratio)
    a, b = round(h / factor) * factor, round(w / factor) * factor
    if a * b > max_pixels:
        beta = math.sqrt(h * w / max_pixels)
        a, b = math.floor(h / beta / factor) * factor, math.floor(w / beta / factor) * factor
    elif a * b < min_pixels:
        beta = math.sqrt(min_pixels / (h * w))
        a, b = math.ceil(h * beta / factor) * factor, math.ceil(w * beta / factor) * factor
    if longest is not None and max(a, b) > longest:
        ratio = longest / max(a, b)
        a, b = math.floor(a * ratio / factor) * factor, math.floor(b * ratio / factor) * factor
    return (a, b) if min(a, b) >= factor else None


REFERENCES = {
    "released": (16, 4096 * 64, 16384 * 64, 1024),
    "recorded": (16, 64 * 64, 1024 * 64, 256),
    "no longest side": (16, 64 * 64, 1024 * 64, None),
    "factor 32": (32, 128 * 128, 512 * 512, 640),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_size(name):
    factor, min_pixels, max_pixels, longest = REFERENCES[name]
    config = replace(
        CONFIG.processor,
        reference_factor=factor,
        reference_min_pixels=min_pixels,
        reference_max_pixels=max_pixels,
        reference_max_side=longest,
    )
    random = np.random.default_rng(1)
    sizes = [*random.integers(1, 3000, (1500, 2)).tolist(), *random.integers(8, 300, (1500, 2)).tolist()]
    sizes += [[side, side] for side in range(16, 1400, 8)] + [[24, 3000], [3000, 24], [40, 9000], [16, 3200]]
    refused = 0
    for height, width in sizes:
        expected = slow_reference_size(height, width, factor, min_pixels, max_pixels, longest)
        if expected is None:
            refused += 1
            with pytest.raises(InputError, match=str(width)):
                imaging.reference_size(height, width, config)
            continue
        h, w = imaging.reference_size(height, width, config)
        assert (h, w) == expected, (height, width)
        assert h % factor == w % factor == 0
        assert h * w <= max_pixels
        assert longest is None or max(h, w) <= longest
        assert h * w >= min_pixels or max(h, w) >= longest - factor, (height, width)
    assert 0 < refused < len(sizes) / 10


# Guidance and sampler


@pytest.mark.parametrize("timestep", [1.0, 749.0, 930.0, 931.0, 999.0])
@pytest.mark.parametrize("all_scale, partial_scale", [(4.5, 2.0), (1.0, 0.0), (-1.0, 3.0)])
def test_guidance(timestep, all_scale, partial_scale):
    full, partial, unconditional = (noise(2, 4, 5, 3, seed=seed) for seed in range(3))
    # Differences around, at and far over a norm of 1.
    partial, full = unconditional + 0.3 * partial, unconditional + 0.6 * full
    full[0, :, 0, 0] = partial[0, :, 0, 0] + torch.tensor([0.0, 1.0, 0.0, 0.0])
    full[1, :, 4, 2] = partial[1, :, 4, 2] + 100
    expected = torch.empty_like(full)
    norms = []
    for n in range(2):
        for row in range(5):
            for column in range(3):
                f, p, u = (v[n, :, row, column].tolist() for v in (full, partial, unconditional))
                terms = []
                for a, b in ((p, u), (f, p)):
                    difference = [x - y for x, y in zip(a, b, strict=True)]
                    norm = math.sqrt(sum(d * d for d in difference))
                    norms.append(norm)
                    divisor = norm**0.4 if timestep > 930 and norm > 1 else 1.0
                    terms.append([d / divisor for d in difference])
                expected[n, :, row, column] = torch.tensor(
                    [u + partial_scale * p + all_scale * f for u, p, f in zip(u, *terms, strict=True)]
                )
    assert min(norms) < 0.9 and max(norms) > 1.1 and any(abs(norm - 1) < 1e-6 for norm in norms)
    actual = guidance.combine(full, partial, unconditional, all_scale, partial_scale, timestep)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    as_tensor = guidance.combine(full, partial, unconditional, all_scale, partial_scale, torch.tensor(timestep))
    torch.testing.assert_close(as_tensor, actual)


def test_guidance_of_equal_branches():
    """One object for both: its term, which would be 0 of anything finite, is not computed."""
    full, partial = noise(1, 4, 2, 2), noise(1, 4, 2, 2, seed=1)
    for timestep in (500.0, 999.0):
        same = guidance.combine(full, partial, partial, 4.5, 2.0, timestep)
        assert torch.equal(same, guidance.combine(full, partial, partial, 4.5, 1e30, timestep))
        torch.testing.assert_close(same, guidance.combine(full, partial, partial.clone(), 4.5, 2.0, timestep))


def linear_ode(rate):
    """dx/dσ = rate · x, whose solution is x(σ) = x(1) exp(rate (σ − 1)). Its denoised value is x − σ dx/dσ."""
    return lambda x, sigma: x - sigma * rate * x


@pytest.mark.parametrize("rate", [1.0, -2.0])
def test_sampler_is_of_second_order(rate):
    errors = []
    for steps in (64, 128, 256, 512):
        sigmas = torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)
        end = dpmpp_2m(linear_ode(rate), torch.ones(1, dtype=torch.float64), sigmas)
        errors.append(abs(float(end) - math.exp(rate * (0.05 - 0.95))))
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert all(3.4 < ratio < 4.6 for ratio in ratios), ratios


def test_sampler_on_its_own_schedule():
    """To σ = 0, from σ ≈ 1, in float32 as it is used; first-order steps would miss by 0.018."""
    end = dpmpp_2m(linear_ode(1.0), torch.full((1,), math.e), flow_sigmas(40))
    assert float(end) == pytest.approx(1.0, abs=0.004)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_sampler_steps(steps):
    """Step by step by the formula, for arbitrary denoised values."""
    sigmas = flow_sigmas(steps)
    denoised = [noise(2, 3, seed=1 + step) for step in range(steps)]
    calls = []

    def model(x, sigma):
        calls.append((x.clone(), float(sigma)))
        return denoised[len(calls) - 1]

    end = dpmpp_2m(model, noise(2, 3), sigmas)

    s = [float(sigma) for sigma in sigmas]
    lam = [math.log(1 - sigma) - math.log(sigma) for sigma in s[:-1]]
    x = noise(2, 3).double()
    for i in range(steps):
        assert calls[i][1] == s[i]
        torch.testing.assert_close(calls[i][0].double(), x, rtol=1e-4, atol=1e-4)
        x0 = denoised[i].double()
        if i == steps - 1:
            x = x0
            break
        h = lam[i + 1] - lam[i]
        if i > 0:
            x0 = x0 + 0.5 * (denoised[i] - denoised[i - 1]).double() * h / (lam[i] - lam[i - 1])
        x = s[i + 1] / s[i] * x - (1 - s[i + 1]) * (math.exp(-h) - 1) * x0
    assert len(calls) == steps
    torch.testing.assert_close(end.double(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [3.0, 1.0, 6.5])
def test_schedule(shift):
    """Every number of steps: the time steps are those of diffusers' float64 arithmetic, truncated."""
    for steps in range(1, 1001):
        exact = 1.0 - np.linspace(1, 1 / 1000, steps + 1)
        exact = np.flip(shift * exact / (1 + (shift - 1) * exact))[:-1].copy()
        sigmas = flow_sigmas(steps, shift)
        assert sigmas.dtype == torch.float32 and len(sigmas) == steps + 1 and sigmas[-1] == 0
        assert sigma_to_timestep(sigmas[:-1]).tolist() == (exact * 1000).astype(np.int64).tolist(), steps
        np.testing.assert_allclose(sigmas[:-1].numpy(), exact, rtol=2e-7)
        assert (sigmas.diff() < 0).all()


def test_released_schedule_by_hand():
    """4 steps, shift 3: s = 0.999, 0.74925, 0.4995, 0.24975, σ = 3 s / (1 + 2 s)."""
    expected = [3 * s / (1 + 2 * s) for s in (0.999, 0.74925, 0.4995, 0.24975)]
    assert flow_sigmas(4).tolist() == pytest.approx([*expected, 0.0], rel=1e-6)
