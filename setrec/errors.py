"""Errors a person can act on: one sentence saying what is wrong, where, and what to do."""


class SETRecError(Exception):
    """Base of the errors that the command line prints as one line, with exit code 2."""


class DataError(SETRecError, ValueError):
    """Something is wrong with a file or a row of the user's data."""


class ConfigError(SETRecError, ValueError):
    """Options that do not go together, or that do not fit the data or the checkpoint."""
