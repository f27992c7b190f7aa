"""The ways in which an operation can be done on a device, best first, and which of them this process takes.

An operation is a `Form` under a name; its ways are named by their operators, and the last one, plain torch, always
suits. A way can be set aside by name: before a run (`use_slower`, what the test of operators found), or in the middle of
one, when its operator fails. `operators` says for the records which ways were taken, and why others were not.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from telechat_kit.backends.failures import first_line, is_lost, is_out_of_memory
from telechat_kit.errors import DeviceError, ParameterError

#: The last way of most forms
PLAIN = "plain torch"
#: What the records say of an operator that was replaced
MIDDLE = "failed in the middle of the run"


@dataclass(frozen=True)
class Way:
    """One way of an operation: `there` asks chip and release, `suits` the arguments, `run` does it.

    `kernels` are the names of its operators in CANN, which an error that comes late names.
    """

    name: str
    run: Callable[..., Any]
    there: Callable[[], bool] = lambda: True
    suits: Callable[..., bool] = lambda *_: True
    kernels: tuple[str, ...] = ()


class Form:
    """An operation with its ways, best first; calling it takes the first that is there, suits and is not set aside.

    An operator that fails is replaced by the next way once and for all, unless memory was too small.
    """

    def __init__(self, forms: "Forms", name: str, ways: tuple[Way, ...]) -> None:
        self.forms, self.name, self.ways = forms, name, ways
        #: way -> why it is not taken
        self.aside: dict[str, str] = {}
        self.used: set[str] = set()

    def __call__(self, *args: Any) -> Any:
        watching = self.forms.watching
        for way in self.ways[:-1]:
            if way.name in self.aside or not (way.there() and way.suits(*args)):
                continue
            try:
                result = way.run(*(_copied(args) if watching else args))
            except RuntimeError as error:
                _require_device(way, error)
                if is_out_of_memory(error):
                    raise
                self.aside[way.name] = f"{MIDDLE}: {first_line(error)}"
                continue
            if watching and _has_nan(result) and not _has_nan(args):
                self.aside[way.name] = "gave NaN in the middle of the run"
                continue
            self.used.add(way.name)
            return result
        self.used.add(self.ways[-1].name)
        return self.ways[-1].run(*args)


def _require_device(way: Way, error: RuntimeError) -> None:
    """Stop if CANN says that the device is lost to this process: a slower way would fail as well."""
    if is_lost(error):
        raise DeviceError(
            f"{way.name} ended with {first_line(error)}: this process can no longer use the device. Start again; "
            "telechat-kit check --operators tries every operator in a process of its own and says which to avoid."
        ) from error


def _has_nan(values: Any) -> bool:
    parts = values if isinstance(values, tuple | list) else (values,)
    floats = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    return any(bool(part.isnan().any()) for part in floats)


def _copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """For an operator that writes into its arguments, and may have to be replaced behind that."""
    return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)


class Forms:
    """The operations of one kind of device that have more than one way."""

    def __init__(self) -> None:
        self._forms: dict[str, Form] = {}
        #: what has one way only: name -> ways that were taken
        self._noted: defaultdict[str, set[str]] = defaultdict(set)
        #: whether results are looked at before they are used, which waits for the device after every operation
        self.watching = False

    def form(self, name: str, *ways: Way) -> Form:
        """A new operation `name` with its ways, best first."""
        self._forms[name] = Form(self, name, ways)
        return self._forms[name]

    def names(self) -> tuple[str, ...]:
        """Names of all forms."""
        return tuple(sorted(self._forms))

    def ways(self, name: str) -> tuple[str, ...]:
        """Names of the ways of the form `name` that the device has and that are not set aside, best first.

        Raises:
            ParameterError: there is no such form.
        """
        form = self._named(name)
        return tuple(way.name for way in form.ways if way.name not in form.aside and way.there())

    def use_slower(self, name: str, reason: str, way: str | None = None) -> None:
        """Do the operation `name` in its next slower way from now on.

        Args:
            name: of the form, as in `operators()`.
            reason: why, in words for the records.
            way: which of its ways is not to be taken; without it the one that would be taken now.

        Raises:
            ParameterError: there is no such form or way, or no slower one is left.
        """
        form, left = self._named(name), self.ways(name)
        others = [own.name for own in form.ways[:-1]]
        if way is not None and way not in others:
            raise ParameterError(
                f'{name} has no way "{way}" that could be set aside. Use one of {", ".join(others)}.'
            )
        if way is None and len(left) < 2:
            raise ParameterError(f"{name} is done in {left[-1]} already: no slower way is left.")
        form.aside[way or left[0]] = reason

    def repaired(self, step: Callable[[], Tensor]) -> Tensor:
        """What `step` gives while every operation in it is watched: one that makes NaN is done in its next slower way."""
        self.watching = True
        try:
            return step()
        finally:
            self.watching = False

    def replace_failed(self, error: RuntimeError) -> bool:
        """Set aside the way whose operator `error` names, for errors that come later than the call; whether there was one.

        Raises:
            DeviceError: the device is lost to this process.
        """
        kernels = set(re.findall(r"aclnn([A-Za-z]+?)(?:V\d+)?(?![A-Za-z0-9])", str(error)))
        for form in self._forms.values():
            for way in form.ways[:-1]:
                taken = way.name in form.used and way.name not in form.aside
                if taken and kernels & set(way.kernels) and not is_out_of_memory(error):
                    _require_device(way, error)
                    form.aside[way.name] = f"{MIDDLE}: {first_line(error)}"
                    return True
        return False

    def set_aside(self) -> dict[str, dict[str, str]]:
        """Ways that are not taken in this process, and why: form -> way -> reason."""
        return {name: dict(form.aside) for name, form in sorted(self._forms.items()) if form.aside}

    def used(self, name: str) -> frozenset[str]:
        """The ways that the form `name` took so far."""
        return frozenset(self._named(name).used)

    def note(self, name: str, way: str) -> None:
        """Tell the records that `name` was done by `way`: for what has no second way."""
        self._noted[name].add(way)

    def operators(self) -> dict[str, str]:
        """Which operator did each operation so far, several if shapes decided, and which was set aside."""
        taken = {name: form.used for name, form in self._forms.items()} | self._noted
        told = {name: ", ".join(sorted(ways)) for name, ways in taken.items() if ways}
        avoided = self.avoided()
        names = sorted(told.keys() | avoided.keys())
        return {name: "; ".join(part[name] for part in (told, avoided) if name in part) for name in names}

    def avoided(self) -> dict[str, str]:
        """What is set aside, in words for the records."""
        return {
            name: "; ".join(f"{way} set aside ({reason})" for way, reason in reasons.items())
            for name, reasons in self.set_aside().items()
        }

    def forget(self) -> None:
        """Begin as a new process does: nothing set aside, nothing used."""
        for form in self._forms.values():
            form.aside.clear()
            form.used.clear()
        self._noted.clear()

    def _named(self, name: str) -> Form:
        if name not in self._forms:
            raise ParameterError(f'the operation "{name}" is unknown. Use one of {", ".join(self.names())}.')
        return self._forms[name]
