"""The scores of Atari 100k that others have published, and what a score is in terms of a person's."""

import json
from importlib.resources import files
from typing import Any


def published() -> dict[str, Any]:
    """Scores of Atari 100k: random, human, and per seed those of STORM and its peers."""
    scores: dict[str, Any] = json.loads((files("storm_fast.runs") / "atari100k_published.json").read_text())
    return scores


def human_normalised(game: str | None, score: float) -> float | None:
    """(A - R) / (H - R) of STORM sec. 4.1; None for a game that has no such scores."""
    scores = published()
    low, human = scores["random"].get(game), scores["human"].get(game)
    return None if low is None or human is None else (score - low) / (human - low)
