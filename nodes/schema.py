"""What the schemas of several nodes share."""

CATEGORY = "InternVL-U"
MAX_SEED = 2**64 - 1
