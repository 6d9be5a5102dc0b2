"""The one error type for what a user can mend, and whether errors show where they were raised."""

show_traceback = False  # set by --debug


class InputError(ValueError):
    """Input, flags or files that the user can mend; the message says what was found, expected, and what to do."""
