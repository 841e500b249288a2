"""The sample pictures that the shipped workflows name, put where Load Image finds them."""

import logging
import shutil
from pathlib import Path

import folder_paths

FOLDER = Path(__file__).parents[2] / "workflows" / "input"
CAPTION = "internvlu_captions"  # a folder of pictures, for the workflow that captions one
MOONS = "internvlu_moons"  # ten pictures with captions, for the workflow that trains an adapter


def install():
    """Copy what is not there into ComfyUI's input folder. A failure is logged: all but the samples works without."""
    target = Path(folder_paths.get_input_directory())
    pictures = {picture.name: picture for picture in sorted(FOLDER.glob("internvlu_*.png"))}
    for name in ("landscape", "poster"):
        pictures[f"{CAPTION}/{name}.png"] = FOLDER / f"internvlu_{name}.png"
    pictures |= {f"{MOONS}/{file.name}": file for file in sorted((FOLDER / MOONS).iterdir())}
    try:
        missing = [name for name in pictures if not (target / name).exists()]
        for name in missing:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            # "x": never over one that came there meanwhile.
            with pictures[name].open("rb") as source, (target / name).open("xb") as copy:
                shutil.copyfileobj(source, copy)
    except OSError as error:
        logging.warning("InternVL-U: the sample pictures could not be copied into %s: %s", target, error)
    else:
        if missing:
            logging.info("InternVL-U: copied sample pictures into %s: %s", target, ", ".join(missing))
