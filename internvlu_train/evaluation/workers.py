"""A checkpoint on the workers of `internvlu batch`, in the place of a model in the scoring of the synthetic world."""

import io
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from internvlu_core.batch.results import Result
from internvlu_core.batch.worker import to_png
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import open_source
from internvlu_core.conditioning import TextResult
from internvlu_core.many import Outcome
from internvlu_core.pipeline import InternVLU

from .rows import Asked, Runner, data_uri
from .sampling import Order, Settings


class Workers:
    """Draws and writes what a model would.

    What is asked does not depend on the results. So it is asked twice: until run() it is only noted, with blank
    results, and then all of it is done at once. config: of the checkpoint. local: the model in this process, loaded
    when it is used.
    """

    def __init__(self, runner: Runner):
        self.runner = runner
        self.config = Config.read(open_source(runner.model.checkpoint))
        self.device, self.dtype = runner.model.device or "of each worker", runner.model.dtype
        self.asked: dict[str, Asked] = {}
        self.results: dict[str, Result] = {}

    @cached_property
    def local(self) -> InternVLU:
        return self.runner.model.load()

    def run(self):
        """Do what was asked so far. Raises InputError as Runner does."""
        self.runner(self.asked.values())
        self.asked.clear()

    def draw(self, orders: list[Order], settings: Settings, reasoning_tokens: int) -> list[np.ndarray]:
        """As draw_all. An order with a reasoning gets one of at most so many tokens, which the workers write again."""
        pictures = []
        for order in orders:
            task = "edit" if order.images else "generate"
            row = {"task": task, "width": settings.size[0], "height": settings.size[1], "steps": settings.steps}
            row |= {"seed": order.seed, "all_scale": settings.all_scale, "partial_scale": settings.partial_scale}
            if order.reasoning is not None:
                row |= {"task": f"reason+{task}", "max_new_tokens": reasoning_tokens}
            if result := self._ask(row, order.prompt, [Image.fromarray(image) for image in order.images]):
                pictures.append(np.asarray(Image.open(io.BytesIO(result.images[0])).convert("RGB")))
            else:
                pictures.append(np.full((*settings.size[::-1], 3), 255, np.uint8))
        return pictures

    def answer_many(self, requests: Iterable[dict], ordered: bool) -> Iterator[Outcome[TextResult]]:
        """As InternVLU.answer_many, always in order. The results have no tokens."""
        yield from self._write("answer", requests)

    def reason_many(self, requests: Iterable[dict], ordered: bool) -> Iterator[Outcome[TextResult]]:
        """As InternVLU.reason_many, always in order. The results have no tokens."""
        yield from self._write("reason", requests)

    def _write(self, task: str, requests: Iterable[dict]) -> Iterator[Outcome[TextResult]]:
        for index, request in enumerate(requests):
            settings = {name: value for name, value in request.items() if name not in ("prompt", "images")}
            result = self._ask({"task": task} | settings, request["prompt"], request["images"])
            said = (result.text if task == "answer" else result.reasoning) if result else ""
            yield Outcome(index, request, TextResult(said, ()))

    def _ask(self, settings: dict[str, Any], prompt: str, images: list[Image.Image]) -> Result | None:
        """The result of a row, or None if it is only noted."""
        row = {name: value for name, value in settings.items() if value is not None} | {"prompt": prompt}
        if images:
            row["images"] = [data_uri(to_png(image)) for image in images]
        name = json.dumps(row)
        if name not in self.results:
            self.asked[name] = Asked(row, lambda result: self.results.update({name: result}))
        return self.results.get(name)
