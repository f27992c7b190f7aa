"""The ways in which an operation can be done here, best first, and which of them this process takes.

An operation is a `Form` under a name; its ways are named by their operators, and the last one, plain torch, always
suits. A way can be set aside by name: before a run (`use_slower`, what the self-test of a card found), or in the middle
of one, when its operator fails. `operators` says for the records which ways were taken, and why others were not.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from telechat_kit.backends.failures import first_line, is_lost, is_out_of_memory
from telechat_kit.errors import DeviceError, ParameterError

#: The last way of every form
PLAIN = "plain torch"

_forms: dict[str, "Form"] = {}
#: form -> way -> why it is not taken
_set_aside: defaultdict[str, dict[str, str]] = defaultdict(dict)
_used: defaultdict[str, set[str]] = defaultdict(set)


@dataclass(frozen=True)
class Way:
    """One way of an operation: `there` asks chip and release, `suits` the arguments, `run` does it."""

    name: str
    run: Callable[..., Any]
    there: Callable[[], bool] = lambda: True
    suits: Callable[..., bool] = lambda *_: True


class Form:
    """An operation with its ways, best first; calling it takes the first that is there, suits and is not set aside.

    An operator that fails is replaced by the next way once and for all, unless memory was too small.
    """

    def __init__(self, name: str, *ways: Way) -> None:
        self.name, self.ways = name, ways
        _forms[name] = self

    def __call__(self, *args: Any) -> Any:
        aside = _set_aside[self.name]
        for way in self.ways[:-1]:
            if way.name in aside or not (way.there() and way.suits(*args)):
                continue
            try:
                result = way.run(*args)
            except RuntimeError as error:
                self._replace(way, error)
            else:
                _used[self.name].add(way.name)
                return result
        _used[self.name].add(self.ways[-1].name)
        return self.ways[-1].run(*args)

    def _replace(self, way: Way, error: RuntimeError) -> None:
        """Set `way` aside after `error`, or say why that would not help."""
        if is_out_of_memory(error):
            raise error
        if is_lost(error):
            raise DeviceError(
                f"{way.name} ended with {first_line(error)}: this process can no longer use the device. Start again; "
                "telechat-kit check --operators tries every operator in a process of its own and says which to avoid."
            ) from error
        use_slower(self.name, f"failed in the middle of the run: {first_line(error)}", way.name)


def use_slower(name: str, reason: str, way: str | None = None) -> None:
    """Do the operation `name` in its next slower way from now on.

    Args:
        name: of the form, as in `operators()`.
        reason: why, in words for the records.
        way: which of its ways is not to be taken; without it the one that would be taken now.

    Raises:
        ParameterError: there is no such form or way, or no slower one is left.
    """
    left = ways(name)
    if way is not None and way not in {own.name for own in _forms[name].ways[:-1]}:
        raise ParameterError(
            f'{name} has no way "{way}" that could be set aside. Use one of {", ".join(left[:-1])}.'
        )
    if way is None and len(left) < 2:
        raise ParameterError(f"{name} is done in {left[-1]} already: no slower way is left.")
    _set_aside[name][way or left[0]] = reason


def ways(name: str) -> tuple[str, ...]:
    """Names of the ways of the form `name` that chip and release have and that are not set aside, best first.

    Raises:
        ParameterError: there is no such form.
    """
    if name not in _forms:
        raise ParameterError(f'the operation "{name}" is unknown. Use one of {", ".join(names())}.')
    aside = _set_aside[name]
    return tuple(way.name for way in _forms[name].ways if way.name not in aside and way.there())


def names() -> tuple[str, ...]:
    """Names of all forms."""
    return tuple(sorted(_forms))


def set_aside() -> dict[str, dict[str, str]]:
    """Ways that are not taken in this process, and why: form -> way -> reason."""
    return {name: dict(reasons) for name, reasons in sorted(_set_aside.items()) if reasons}


def note(name: str, way: str) -> None:
    """Tell the records that `name` was done by `way`: for what has no second way."""
    _used[name].add(way)


def operators() -> dict[str, str]:
    """Which operator did each operation in this process so far, several if shapes decided, and which was set aside."""
    found = {}
    for name in sorted(_used.keys() | set_aside().keys()):
        told = [", ".join(sorted(_used[name]))] if _used[name] else []
        told += [f"{way} set aside ({reason})" for way, reason in _set_aside[name].items()]
        found[name] = "; ".join(told)
    return found


def forget() -> None:
    """Begin as a new process does: nothing set aside, nothing used."""
    _set_aside.clear()
    _used.clear()
