"""Errors that a user can act on: each message names the cause and the remedy."""

import traceback

from telechat_kit.messages import Message, shown
from telechat_kit.messages import gettext as _
from telechat_kit.widths import visible

#: Calls shown below a message in a notebook: the cell's own and the innermost
_CALLS = 4


class KitError(Exception):
    """Wrong input or environment. The message is complete: the command line prints it without a traceback.

    Its text is English, as records and logs keep it; `shown` says it in the language in force.

    Example:
        >>> str(DataError("{path} does not exist.", path="a.txt"))
        'a.txt does not exist.'
    """

    exit_code = 2

    def __init__(self, message: str, /, **values: object) -> None:
        """`message` with `{names}` for the values; without values its braces are braces."""
        made = Message(message, **values) if values or not isinstance(message, Message) else message
        super().__init__(made)

    def __str__(self) -> str:
        return self.args[0]

    def shown(self) -> str:
        """The message in the language in force; names of files and texts in it command no terminal."""
        return visible(shown(self.args[0]))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in a notebook: the message first, then where it was raised, without the libraries."""
        calls = traceback.extract_tb(self.__traceback__)
        own = [
            call for call in calls if "site-packages" not in call.filename or "telechat_kit" in call.filename
        ]
        kept = own if len(own) <= _CALLS else [own[0], *own[1 - _CALLS :]]
        places = [
            _("  {file}, line {line}, in {name}").format(file=call.filename, line=call.lineno, name=call.name)
            for call in kept
        ]
        return [f"{type(self).__name__}: {self.shown()}", "", _("Raised in:"), *places]


class CheckpointError(KitError):
    """A checkpoint folder is missing, incomplete, damaged, or of another architecture."""


class ParameterError(KitError):
    """A profile or an override holds an unknown key or a value of the wrong type."""


class DataError(KitError):
    """A data file is missing or malformed; the message names file and line."""


class DeviceError(KitError):
    """The device asked for is not there or cannot be used."""
