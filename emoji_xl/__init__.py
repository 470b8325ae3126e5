"""How the embedded base model is made: artwork, captions, architecture, training."""
