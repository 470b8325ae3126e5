"""Ours and the peers, measured in one process: `python -m benchmarks.NAME`."""

import os

# Read when torch is imported: idle OpenMP threads that spin starve a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
