"""Sends text to the browser while it is generated."""

import time
from collections.abc import Callable, Sequence

from server import PromptServer


class TextStream:
    """Times growing text, and sends it to its node in the browser once it is shown, at most ten times a second."""

    EVENT = "internvlu.text"  # data: node, text, tokens, tokens_per_second, and what the node says about the text
    INTERVAL = 0.1  # seconds

    def __init__(self, node_id: str | None, **about):
        self.node_id, self.about, self.shown = node_id, about, False
        self.tokens, self.rate = 0, 0.0
        self.first = self.sent = self.text = None

    @property
    def counted(self) -> tuple[int, float]:
        """Tokens, and tokens a second."""
        return self.tokens, self.rate

    def show(self):
        """Begin to send: first an empty text, which removes what an earlier run has left, then what is there."""
        self.shown = True
        self._send("", 0)
        self.flush()

    def flush(self):
        """Send the text as far as it is there."""
        if self.text:
            self._send(self.text(), self.tokens)

    def __call__(self, tokens: int, text: Callable[[], str]):
        now = time.monotonic()
        self.first = self.first or now
        # Counted from the first token: the time before it went into loading and into reading the prompt.
        self.tokens, self.rate = tokens, (tokens - 1) / (now - self.first) if now > self.first else 0.0
        self.text = text
        if self.shown and (self.sent is None or now - self.sent >= self.INTERVAL):
            self.sent = now
            self._send(text(), tokens)

    def _send(self, text: str, tokens: int):
        data = {"node": self.node_id, "text": text, "tokens": tokens, "tokens_per_second": self.rate, **self.about}
        if self.node_id is not None:
            server = PromptServer.instance
            server.send_sync(self.EVENT, data, server.client_id)


def ui_of(texts: Sequence[str], counts: Sequence[tuple[int, float]]) -> dict:
    """What a node's output says of its items in the browser and in the history. counts: see TextStream.counted."""
    tokens, rates = zip(*counts, strict=True)
    return {"text": list(texts), "tokens": list(tokens), "tokens_per_second": list(rates)}


class TextStreams:
    """The streams of a node's items, which may be written at the same time, shown one after the other.

    The page thus gets what it gets if they are written one after the other.
    """

    def __init__(self, streams: Sequence[TextStream]):
        self.streams, self.at = streams, 0
        self.finished: set[int] = set()
        streams[0].show()

    def finish(self, index: int):
        """Say that this item is written whole; show the next one if it was the one that is shown."""
        self.finished.add(index)
        if index == self.at:
            self.streams[index].flush()
        while self.at in self.finished and self.at + 1 < len(self.streams):
            self.at += 1
            self.streams[self.at].show()
