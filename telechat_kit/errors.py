"""Errors that a user can act on: each message names the cause and the remedy."""

import traceback

#: Calls shown below a message in a notebook: the cell's own and the innermost
_CALLS = 4


class KitError(Exception):
    """Wrong input or environment. The message is complete: the command line prints it without a traceback."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in a notebook: the message first, then where it was raised, without the libraries."""
        calls = traceback.extract_tb(self.__traceback__)
        own = [
            call for call in calls if "site-packages" not in call.filename or "telechat_kit" in call.filename
        ]
        shown = own if len(own) <= _CALLS else [own[0], *own[1 - _CALLS :]]
        places = [f"  {call.filename}, line {call.lineno}, in {call.name}" for call in shown]
        return [f"{type(self).__name__}: {self}", "", "Raised in:", *places]


class CheckpointError(KitError):
    """A checkpoint folder is missing, incomplete, damaged, or of another architecture."""


class ParameterError(KitError):
    """A profile or an override holds an unknown key or a value of the wrong type."""


class DataError(KitError):
    """A data file is missing or malformed; the message names file and line."""


class DeviceError(KitError):
    """The device asked for is not there or cannot be used."""
