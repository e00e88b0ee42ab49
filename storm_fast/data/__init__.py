"""What is learned from: the replay and the demonstration beside it."""
