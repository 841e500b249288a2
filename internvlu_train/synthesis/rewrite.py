"""Reasoning in other words, by InternVL-U itself or by a server with OpenAI's interface; the template where that fails.

What a model writes is taken only if it keeps each text in quotation marks and each number, is in the same language and
of a similar length.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException

from internvlu_core.batch.worker import ModelOptions
from internvlu_core.errors import InputError, in_one_line

from ..sample import Sample
from .layout import is_wide

TOKENS, SECONDS, ATTEMPTS = 512, 120, 4
LENGTHS = 0.25, 3.0  # of what is taken, in lengths of the template
QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|「([^」]+)」|『([^』]+)』")
ORDER = {
    "en": "Somebody asked for a picture: {prompt}\nThese are notes for the artist: {words}\n"
    "Say the same in your own words, as one paragraph. Keep every text in quotation marks and every number exactly "
    "as it is. Write only the paragraph.",
    "zh": "有人想要一张图：{prompt}\n这是给画师的笔记：{words}\n"
    "请用自己的话写成一段，意思不变。引号里的文字和所有数字必须原样保留。只写这一段。",
}

Ask = Callable[[str], str]


@dataclass(frozen=True)
class Rewriter:
    """Gives a sample of the task "reason" other words. ask(text): the answer of a model.

    Calling it with a sample returns the sample that is written; truth["rewritten"] says whether the words are new.
    """

    ask: Ask

    def __call__(self, sample: Sample) -> Sample:
        if sample.task != "reason":
            return sample
        order = ORDER[sample.truth["language"]].format(prompt=sample.prompt, words=sample.words)
        said = self.ask(order).strip()
        good = keeps(sample.words, said)
        return replace(sample, words=said if good else sample.words, truth=sample.truth | {"rewritten": good})


def keeps(words: str, said: str) -> bool:
    """Whether a text says what another says, as far as a program can tell."""
    texts = ["".join(found) for found in QUOTED.findall(words)]
    numbers = re.findall(r"\d+(?:\.\d+)?", words)
    length = len(said) / max(1, len(words))
    there = re.findall(r"\d+(?:\.\d+)?", said)
    same = all(text in said for text in texts) and set(numbers) <= set(there)
    return same and LENGTHS[0] <= length <= LENGTHS[1] and _mostly_wide(words) == _mostly_wide(said)


def _mostly_wide(text: str) -> bool:
    rest = QUOTED.sub("", text)
    return sum(map(is_wide, rest)) * 3 > len(rest)


def by_model(options: ModelOptions) -> Rewriter:
    """By a checkpoint of InternVL-U; greedy, so that the same sample has the same words."""
    model = options.load()
    return Rewriter(lambda text: model.answer(text, max_new_tokens=TOKENS).text)


def by_server(url: str, name: str, key_variable: str | None = None) -> Rewriter:
    """By a server, such as "http://127.0.0.1:8000/v1". key_variable: the environment variable that has its key.

    Raises InputError if there is no such variable.
    """
    if key_variable and key_variable not in os.environ:
        raise InputError(f"there is no environment variable {key_variable}")
    return Rewriter(partial(_ask, url.rstrip("/") + "/chat/completions", name, key_variable))


def _ask(url: str, name: str, key_variable: str | None, text: str) -> str:
    """One question to a server. Raises InputError if it does not answer after some attempts."""
    messages = [{"role": "user", "content": text}]
    body = {"model": name, "messages": messages, "temperature": 0, "seed": 0, "max_tokens": TOKENS}
    headers = {"Content-Type": "application/json"}
    if key_variable:
        headers["Authorization"] = f"Bearer {os.environ[key_variable]}"
    for attempt in range(ATTEMPTS):
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{url} does not answer as OpenAI's interface does: {in_one_line(error)}") from error
        except (OSError, HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if refused or attempt == ATTEMPTS - 1:
                raise InputError(f"{url} does not answer: {in_one_line(error)}") from error
            time.sleep(2**attempt)
    raise AssertionError("the last attempt returns or raises")
