"""The one exception that a user may see."""


class EngrainError(Exception):
    """Something the user can mend. The message is one line: what is wrong and what to do next."""
