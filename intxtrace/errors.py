"""Errors that a user can do something about."""


class IntxtraceError(Exception):
    """One sentence that says what is wrong and what to do; the command line prints it and exits with status 1."""
