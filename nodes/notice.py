"""What a node has to say that is no error."""

import logging

from server import PromptServer


def tell(node_id: str | None, text: str):
    """Log a warning, and show it in the node."""
    logging.warning("InternVL-U: %s", text)
    if node_id is not None:
        server = PromptServer.instance
        server.send_progress_text(text, node_id, server.client_id)
