"""`convert --to transformers`: transformers' own class gives the logits and the tokens of internvlu_core."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from internvlu_core import CheckpointError, InputError, InternVLU, Turn, imaging
from internvlu_core.cli import main
from internvlu_core.to_transformers import to_transformers
from support.checkpoints import CHECKPOINT, GOLDEN, copy_checkpoint, random_checkpoint

TOY = Path(__file__).resolve().parents[2] / "demo" / "InternVL-U-toy"
VLM = "vlm/config.json"


def pictures(*names: str) -> list[Image.Image]:
    return [imaging.open_image(GOLDEN / f"{name}.png") for name in names]


def user(text: str, *images: Image.Image) -> dict:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def says(role: str, text: str) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}]}


class Pair:
    """One checkpoint in both implementations, float32."""

    def __init__(self, checkpoint: Path, folder: Path):
        from transformers import AutoProcessor, InternVLForConditionalGeneration

        to_transformers(checkpoint, folder)
        self.ours = InternVLU.from_pretrained(checkpoint, "cpu", torch.float32)
        self.theirs, info = InternVLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        assert not any(info.values()), info
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, messages: list[dict], **settings):
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **settings
        )

    def logits(self, ids: list[int], tiles: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all positions of a prompt, [T, vocabulary]: ours, theirs."""
        conditioner, vlm = self.ours.conditioner, self.ours.vlm
        context = self.ours.tokenizer.id("<IMG_CONTEXT>")
        with torch.inference_mode():
            features = conditioner.image_features(tiles, "cpu", torch.float32)
            x = conditioner._embed(ids, [token == context for token in ids], features, "cpu")
            (last,) = vlm.language_model(x, (self.ours.config.language.num_layers,))
            pixels = torch.cat(tiles) if tiles else None
            theirs = self.theirs(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0]
            return vlm.language_model.logits(last[0]), theirs

    def same_tokens(self, prompt: str, images: list[Image.Image], messages: list[dict], count: int = 24, **settings):
        """The processor's tiles and ids, the logits and the greedy tokens of one question."""
        max_tiles = settings.pop("max_tiles", 1)
        inputs = self.inputs(messages, **({"max_patches": max_tiles} if max_tiles > 1 else {}))
        history = settings.get("history", ())
        seen = [*(image for turn in history for image in turn.images), *images]
        tiles = [imaging.vit_tiles(image, self.ours.config.processor, max_tiles) for image in seen]
        if tiles:
            torch.testing.assert_close(inputs["pixel_values"], torch.cat(tiles), atol=1e-5, rtol=0)
        chat = self.ours.conditioner.prompts.chat(
            prompt, [len(t) for t in tiles], settings.get("system_prompt"), history
        )
        assert inputs["input_ids"][0].tolist() == list(chat.ids)
        ours, theirs = self.logits(list(chat.ids), tiles)
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)

        answer = self.ours.answer(prompt, images, max_tiles=max_tiles, max_new_tokens=count, **settings)
        generated = self.theirs.generate(**inputs, max_new_tokens=count)
        assert tuple(generated[0, len(chat.ids) :].tolist()) == answer.token_ids


@pytest.fixture(scope="module", params=[CHECKPOINT, TOY], ids=["recorded", "toy"])
def pair(request, tmp_path_factory) -> Pair:
    checkpoint = request.param
    if checkpoint == CHECKPOINT:  # its thumbnail stands first, which only the class can do, not its processor
        checkpoint = copy_checkpoint(tmp_path_factory.mktemp("c") / "c", {VLM: {"thumbnail_pos": "end"}})
    return Pair(checkpoint, tmp_path_factory.mktemp("transformers"))


def test_question_without_a_picture(pair):
    pair.same_tokens("what do you know", [], [user("what do you know")])


def test_one_tile(pair):
    (photo,) = pictures("photo")
    pair.same_tokens("what is it?", [photo], [user("what is it?", photo)])


def test_several_tiles(pair):
    (wide,) = pictures("photo")
    wide = wide.resize((800, 400))
    assert len(imaging.vit_tiles(wide, pair.ours.config.processor, 6)) > 2
    pair.same_tokens("which colours", [wide], [user("which colours", wide)], max_tiles=6)


def test_two_pictures(pair):
    images = pictures("photo", "tall")
    pair.same_tokens("what differs", images, [user("what differs", *images)])


def test_conversation_with_a_system_text(pair):
    (photo,) = pictures("photo")
    history = (Turn("what is it", "A cat.", [photo]),)
    messages = [says("system", "Be brief."), user("what is it", photo), says("assistant", "A cat."), user("why")]
    pair.same_tokens("why", [], messages, history=history, system_prompt="Be brief.")


@pytest.mark.parametrize("text", ["  ünder one  ", "done!", "一只猫", "a: ", "x"])
def test_texts_are_marked_as_ours(pair, text):
    ids = pair.inputs([user(text)])["input_ids"][0].tolist()
    assert ids == list(pair.ours.conditioner.prompts.chat(text, [], None).ids)


def test_other_networks(tmp_path):
    """A tied head, queries and keys normalised, RMSNorm, biases, ViT layers that are not used."""
    vision = {"qk_normalization": True, "norm_type": "rms_norm", "num_hidden_layers": 3, "qkv_bias": False}
    language = {"attention_bias": True, "tie_word_embeddings": True, "rope_theta": 5000.0}
    changes = {"vision_config": vision, "llm_config": language, "select_layer": -2, "thumbnail_pos": "end"}
    pair = Pair(random_checkpoint(tmp_path / "checkpoint", {VLM: changes}), tmp_path / "out")
    (photo,) = pictures("photo")
    pair.same_tokens("what is it", [photo], [user("what is it", photo)])
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(written["lm_head.weight"], written["model.language_model.embed_tokens.weight"])


def test_special_tokens_that_the_model_writes(pair):
    """They keep the rows of the main table: both read on alike after a box."""
    prompt = list(pair.ours.conditioner.prompts.chat("where", [], None).ids)
    token = pair.ours.tokenizer.id("<box>")
    ours, vlm = pair.ours.conditioner, pair.ours.vlm
    with torch.inference_mode():
        box = vlm.embed_generated(torch.tensor([[token]]))
        x = torch.cat([ours._embed(prompt, [False] * len(prompt), [], "cpu"), box], dim=1)
        (last,) = vlm.language_model(x, (pair.ours.config.language.num_layers,))
        theirs = pair.theirs(input_ids=torch.tensor([[*prompt, token]])).logits[0, -1]
        torch.testing.assert_close(theirs, vlm.language_model.logits(last[0, -1]), atol=1e-4, rtol=1e-4)


def test_command(tmp_path, capsys):
    command = ["convert", str(CHECKPOINT), str(tmp_path / "out"), "--to", "transformers"]
    assert main([*command, "--dtype", "bf16"]) == 0
    assert str(tmp_path / "out" / "chat_template.jinja") in capsys.readouterr().out.split("\n")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


def test_what_the_class_cannot_hold(tmp_path):
    vision = {"qk_normalization": True, "layer_norm_eps": 1e-5}
    odd = random_checkpoint(tmp_path / "odd", {VLM: {"vision_config": vision}})
    with pytest.raises(CheckpointError, match="epsilon of 1e-6, not 1e-05"):
        to_transformers(odd, tmp_path / "out")
    small = random_checkpoint(tmp_path / "small", {VLM: {"llm_config": {"vocab_size": 300}}})
    with pytest.raises(CheckpointError, match="tokenizer has 313 tokens"):
        to_transformers(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_of_two_dtypes(tmp_path):
    def halve(tensors):
        tensors["special_token_embedding.weight"] = tensors["special_token_embedding.weight"].bfloat16()

    mixed = copy_checkpoint(tmp_path / "mixed", tensors={"vlm": halve})
    with pytest.raises(InputError, match="name a dtype"):
        to_transformers(mixed, tmp_path / "out")
    to_transformers(mixed, tmp_path / "out", dtype=torch.float32)
    written = load_file(tmp_path / "out" / "model.safetensors")["model.language_model.embed_tokens.weight"]
    stored = load_file(mixed / "vlm" / "model.safetensors")
    np.testing.assert_array_equal(written[303], stored["special_token_embedding.weight"][4].float())
