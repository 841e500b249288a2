"""Training samples at full resolution in the report's five domains, each with a truth that a program can judge.

A sample is a function of (domain, task, kind, seed, size, language). A domain is a module with

    KINDS = {task: {kind: function(Choices) -> Sample}}

where tasks are those of Sample ("draw", "edit", "ask", "reason"). The function must take all random choices from its
argument, and write prompts, answers and reasoning in `choices.language`. Sample.truth is a dict that JSON can hold; it
has at least "kind" and "language", which make() adds.

`python -m internvlu_train.synthesis` writes many of them, see docs/synthesis.md.
"""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path

from ..choices import Choices
from ..sample import Sample

DOMAINS = ("text", "science", "space", "humour", "reasoning")
LANGUAGES = ("en", "zh")
VERSION = 2  # of the samples: raised whenever a seed gives another one, so that a run does not mix old and new ones


@dataclass(frozen=True)
class Resources:
    """A user's own files, which take the place of ours. fonts: a folder of fonts. pictures: a folder of pictures."""

    fonts: Path | None = None
    pictures: Path | None = None


class LanguageChoices(Choices):
    """language: of prompts and answers, one of LANGUAGES. resources: the user's fonts and pictures.

    marks: the quotation marks of the prompt, once they are chosen. is_apart: whether what was chosen is already told
    apart from what is for training, or for evaluation, see figures.keep_apart.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        size: tuple[int, int],
        language: str | None = None,
        resources: Resources = Resources(),
    ):
        super().__init__(name, seed, size)
        chosen = self.pick(LANGUAGES)  # drawn in any case, so that all else is the same in both languages
        self.language, self.resources, self.marks = language or chosen, resources, ""
        self.is_apart = True


def kinds(domain: str) -> dict[str, dict]:
    """{task: {kind: function}} of a domain. Raises ValueError for one that does not exist."""
    if domain not in DOMAINS:
        raise ValueError(f"no domain {domain!r}; there are {', '.join(DOMAINS)}")
    return importlib.import_module(f".{domain}", __package__).KINDS


def make(
    domain: str,
    task: str,
    seed: int,
    size: tuple[int, int] = (1024, 1024),
    kind: str | None = None,
    language: str | None = None,
    resources: Resources = Resources(),
) -> Sample:
    """One sample. size: (width, height) in pixels. kind, language: None for any.

    Raises ValueError for a domain, task or kind that does not exist.
    """
    found = kinds(domain).get(task)
    if not found:
        raise ValueError(f"no samples of {domain}/{task}; there are {', '.join(kinds(domain))}")
    if kind not in (None, *found):
        raise ValueError(f"no kind {kind!r} of {domain}/{task}; there are {', '.join(found)}")
    choices = LanguageChoices(f"{domain}/{task}", seed, size, language, resources)
    picked = choices.pick(sorted(found))
    sample = found[kind or picked](choices)
    return replace(sample, truth={"kind": kind or picked, "language": choices.language} | (sample.truth or {}))
