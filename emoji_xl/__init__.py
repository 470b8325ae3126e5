"""How the embedded base model is made: artwork, captions, architecture, training."""

import os

# transformers otherwise greets everybody with remarks on torchvision, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
