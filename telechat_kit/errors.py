"""Errors that a user can act on: each message names the cause and the remedy."""


class KitError(Exception):
    """Wrong input or environment. The message is complete: the command line prints it without a traceback."""

    exit_code = 2


class CheckpointError(KitError):
    """A checkpoint folder is missing, incomplete, damaged, or of another architecture."""


class ParameterError(KitError):
    """A profile or an override holds an unknown key or a value of the wrong type."""


class DataError(KitError):
    """A data file is missing or malformed; the message names file and line."""


class DeviceError(KitError):
    """The device asked for is not there or cannot be used."""
