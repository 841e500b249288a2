"""The loader's choice to download the released checkpoint. Nothing is downloaded unless it is chosen and queued."""

import logging
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths

from ...internvlu_core.checkpoints import hub
from . import folders

FOLDER = "InternVL-U"
CHOICE = f"download: {FOLDER} ({hub.SIZE})"


def choices() -> list[str]:
    """Names for the combo: what can be loaded, and the download while its folder is not there."""
    found = list(folders.checkpoints())
    return found if FOLDER in found else [*found, CHOICE]


def target() -> Path:
    return Path(folder_paths.get_folder_paths(folders.NAME)[0]) / FOLDER


def resolve(name: str) -> Path | None:
    """The checkpoint that a choice names; None for one that is to be downloaded. Raises ValueError as checkpoint."""
    there = FOLDER in folders.checkpoints()
    if name == CHOICE:
        return folders.checkpoint(FOLDER) if there else None
    try:
        return folders.checkpoint(name)
    except ValueError as error:
        offer = f"; press the node's button “Download …”, or choose {CHOICE!r}, to fetch the released one"
        raise ValueError(str(error) if there else f"{error}{offer}") from None


def fetch() -> Path:
    """Download, with a progress bar on the node; ComfyUI's cancel raises out of it."""
    folder = target()
    logging.info("InternVL-U: downloading %s (%s) into %s", hub.REPOSITORY, hub.SIZE, folder)
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int):
        comfy.model_management.throw_exception_if_processing_interrupted()  # newer progress bars look only now and then
        bar.update_absolute(done, total)

    return hub.download(folder, report)
