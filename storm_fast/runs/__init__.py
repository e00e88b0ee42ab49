"""What a run leaves behind: its folder, its environment, its scores. Files alone, no networks."""
