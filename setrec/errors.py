"""Errors for the user: one sentence that says what is wrong, where, and what to do."""


class SETRecError(Exception):
    """Base class. The command line prints such an error as one line and exits with code 2."""


class DataError(SETRecError, ValueError):
    """A file or a row of the user's data is wrong."""


class ConfigError(SETRecError, ValueError):
    """Options contradict each other, or do not fit the data or the checkpoint."""


class ModelError(SETRecError, ValueError):
    """A model gives scores that are not finite numbers."""
