"""What commands tell the person at the terminal."""


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(text, flush=True)
