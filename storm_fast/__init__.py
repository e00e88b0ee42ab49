"""STORM: a world model learns an Atari game, an agent learns inside it. Start reading at `train.py`."""

import os

# Between two parallel loops OpenMP's threads wait for the next one, by default in a loop of their own that keeps a core
# busy; where other programs want that core, each loop waits for them. The runtime reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
