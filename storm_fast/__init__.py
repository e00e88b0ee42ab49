"""STORM: a world model learns an Atari game, an agent learns inside it. Start reading at `train.py`."""
