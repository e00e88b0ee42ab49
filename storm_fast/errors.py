"""The one exception that means: what the user gave cannot be used, and nothing was written."""


class InputError(ValueError):
    """Says what was wanted and what came; the commands print it and exit with status 2."""
