"""The toy model: its sizes, its tokenizer, a checkpoint with random weights, and the presets of its training stages."""
