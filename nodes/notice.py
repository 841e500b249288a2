"""What a person should know of a run that goes on all the same."""

from server import PromptServer

EVENT = "internvlu.notice"  # data: key, of a text in locales/*/main.json, and the values in it


def notify(key: str, **values):
    """Show a notice in the browser that queued the run, in its language (js/notices.js)."""
    server = getattr(PromptServer, "instance", None)  # none in a process that only imports ComfyUI
    if server is not None:
        server.send_sync(EVENT, {"key": key, "values": values}, server.client_id)
