"""Sends text to the browser while it is generated."""

import time
from collections.abc import Callable

from server import PromptServer


class TextStream:
    """Sends growing text to its node in the browser, at most ten times a second, and times it."""

    EVENT = "internvlu.text"  # data: node, text, tokens, tokens_per_second, and what the node says about the text
    INTERVAL = 0.1  # seconds

    def __init__(self, node_id: str | None, **about):
        self.node_id, self.about = node_id, about
        self.tokens, self.rate = 0, 0.0
        self.first = self.sent = None
        self._send("")  # removes what an earlier run has left there

    def __call__(self, tokens: int, text: Callable[[], str]):
        now = time.monotonic()
        self.first = self.first or now
        # Counted from the first token: the time before it went into loading and into reading the prompt.
        self.tokens, self.rate = tokens, (tokens - 1) / (now - self.first) if now > self.first else 0.0
        if self.sent is None or now - self.sent >= self.INTERVAL:
            self.sent = now
            self._send(text())

    def _send(self, text: str):
        data = {"node": self.node_id, "text": text, "tokens": self.tokens, "tokens_per_second": self.rate, **self.about}
        if self.node_id is not None:
            server = PromptServer.instance
            server.send_sync(self.EVENT, data, server.client_id)

    def ui(self, text: str) -> dict:
        """What the node's output says in the browser and in the history."""
        return {"text": [text], "tokens": [self.tokens], "tokens_per_second": [self.rate]}
