"""Where benchmarks run, and what each operation is timed as."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

FORMS = ["reference", "compiled", "triton"] if DEVICE.type == "cuda" else ["reference"]
"""What each operation is timed as; on a CPU the references alone, which is all that a CPU runs."""
