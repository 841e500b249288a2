"""Weight formats other than plain tensors, a file each."""
