"""Adapters between the core and the classes of ComfyUI: MODEL, VAE, VLM, CLIP, guider, LoRA keys, folders."""
