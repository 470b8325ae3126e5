"""DreamBooth and style trainer for sparse adapters and their LoRA twins: `python -m training`."""
