"""The networks, one a file. They do not import each other, except vlm.py, which joins two of them."""
