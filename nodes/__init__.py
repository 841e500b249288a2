"""ComfyUI nodes and adapters around internvlu_core. Only this package imports comfy."""
