"""Samples of real data, read where they lie.

    FOLDER with metadata.jsonl     as diffusers and ai-toolkit write it: a row has file_name and text
    FOLDER or NAME-{000000..}.tar  WebDataset shards: KEY.json, KEY.png, KEY.input0.png, …
    FOLDER of pictures and texts   NAME.png, NAME.txt, NAME.before.png (folder.py)

A row may also have: images (file names of input pictures), words (an answer, or reasoning before a picture), task,
domain. The way of the data: sources (where each row is) → prepare (checks, latents and conditionings, cached on disk) →
mixture (which samples a micro-batch has) → feed (micro-batches).
"""
