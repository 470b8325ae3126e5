"""ComfyUI: load SHiRA adapters (SHiRA Studio's native files) into a MODEL and a CLIP."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
