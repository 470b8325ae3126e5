"""DreamBooth and style trainer for sparse adapters and their LoRA twins: `python -m training`."""

import os

# An idle OpenMP thread spins, and where another job has its core (a studio that draws while we
# train) the busy one waits for it: 10 s a step and more instead of 1, measured on 2 cores under a
# load of 5. Sleeping costs up to 0.2 s a step on idle cores. torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# transformers otherwise greets everybody with remarks on torchvision, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
