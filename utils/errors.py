"""The one error type for what a user can mend."""


class InputError(ValueError):
    """Input, flags or files that the user can mend; the message says what was found, expected, and what to do."""
