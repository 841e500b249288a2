"""What a person should know of a run that goes on all the same."""

import logging

from server import PromptServer

EVENT = "internvlu.notice"  # data: key, of a text in locales/*/main.json, and the values in it


def notify(message: str, key: str, **values):
    """Log the message, and show the text of this key in the browser that queued the run, in its language."""
    logging.warning("InternVL-U: %s", message)
    server = getattr(PromptServer, "instance", None)  # none in a process that only imports ComfyUI
    if server is not None:
        server.send_sync(EVENT, {"key": key, "values": values}, server.client_id)
