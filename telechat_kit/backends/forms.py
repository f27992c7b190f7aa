"""The ways in which an operation can be done on a device, best first, and which of them this process takes.

An operation is a `Form` under a name; its ways are named by their operators, and the last one, plain torch, always
suits. A way can be set aside by name: before a run (`use_slower`, what the test of operators found), or in the middle of
one, when its operator fails. `operators` says for the records which ways were taken, and why others were not.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from telechat_kit.backends.failures import failed_kernels, first_line, is_lost, is_out_of_memory
from telechat_kit.errors import DeviceError, ParameterError

#: The last way of most forms
PLAIN = "plain torch"
#: What the records say of an operator that was replaced
MIDDLE, NAN = "failed in the middle of the run", "gave NaN in the middle of the run"
_FIND_IT = (
    "telechat-kit check --operators tries every operator in a process of its own and says which to avoid"
)


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
        if self.forms.watching:
            return self._watched(args)
        for way in self._left(args):
            if way is self.ways[-1]:
                break
            try:
                result = way.run(*args)
            except RuntimeError as error:
                self._set_aside(way, error)
                continue
            self.used.add(way.name)
            return result
        self.used.add(self.ways[-1].name)
        return self.ways[-1].run(*args)

    def _watched(self, args: tuple[Any, ...]) -> Any:
        """The same, each result looked at: a way that made NaN of none is set aside if a slower one does not."""
        guilty, first = list[Way](), None
        for way in self._left(args):
            try:
                result = way.run(*map(_copied, args))
            except RuntimeError as error:
                if way is self.ways[-1]:
                    raise
                self._set_aside(way, error)
                continue
            if not _has_nan(result) or _has_nan(args):
                self.aside.update(dict.fromkeys([bad.name for bad in guilty], NAN))
                self.used.add(way.name)
                return result
            first = first or (way, result)
            guilty.append(way)
        assert first is not None  # NaN in every way: it is the model's own, and no operator's fault
        self.used.add(first[0].name)
        return first[1]

    def taken(self) -> Iterator[Way]:
        """The ways that were used so far and are not set aside."""
        return (way for way in self.ways[:-1] if way.name in self.used and way.name not in self.aside)

    def _left(self, args: tuple[Any, ...]) -> Iterator[Way]:
        """The ways that `args` can take, best first; the last one always can."""
        for way in self.ways[:-1]:
            if way.name not in self.aside and way.there() and way.suits(*args):
                yield way
        yield self.ways[-1]

    def _set_aside(self, way: Way, error: RuntimeError) -> None:
        """Not to take `way` again for the `error`, unless memory was too small or the device is lost."""
        if is_out_of_memory(error):
            raise error
        if is_lost(error):
            raise self.forms.lost(error, way.name) from error
        self.aside[way.name] = f"{MIDDLE}: {first_line(error)}"


def _has_nan(values: Any) -> bool:
    parts = values if isinstance(values, tuple | list) else (values,)
    floats = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    return any(bool(part.isnan().any()) for part in floats)


def _copied(arg: Any) -> Any:
    """For an operator that writes into its arguments, and may have to be replaced behind that."""
    # a copy of a weight would lose its blocked format, and is written to by nobody
    return arg.clone() if isinstance(arg, Tensor) and arg.is_floating_point() else arg


class Forms:
    """The operations of one kind of device that have more than one way."""

    def __init__(self) -> None:
        self._forms: dict[str, Form] = {}
        #: what has one way only: name -> ways that were taken
        self._noted: defaultdict[str, set[str]] = defaultdict(set)
        #: whether results are looked at before they are used, which waits for the device after every operation
        self.watching = False
        #: is told operation, way and error of what took the device away, for the processes to come
        self.remember: Callable[[str, str, str], None] | None = None

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
                '{name} has no way "{way}" that could be set aside. Use one of {others}.',
                name=name,
                way=way,
                others=", ".join(others),
            )
        if way is None and len(left) < 2:
            raise ParameterError(
                "{name} is done in {left} already: no slower way is left.", name=name, left=left[-1]
            )
        form.aside[way or left[0]] = reason

    def repaired(self, step: Callable[[], Tensor]) -> Tensor:
        """What `step` gives while every operation in it is watched: one that makes NaN is done in its next slower way."""
        self.watching = True
        try:
            return step()
        finally:
            self.watching = False

    def lost(self, error: RuntimeError, called: str = "") -> DeviceError:
        """What to stop with when `error` says that the device is lost to this process, which no slower way can help.

        The ways whose operators it names go to `remember`. `called` is the way that was called when it came, which need
        not be the one that failed.
        """
        named, told = failed_kernels(error), first_line(error).rstrip(".")
        found = [
            (form.name, way.name)
            for form in self._forms.values()
            for way in form.taken()
            if named & set(way.kernels)
        ]
        if self.remember is not None:
            for operation, way in found:
                self.remember(operation, way, told)
        who = ", ".join(dict.fromkeys(way for _, way in found)) or ", ".join(sorted(named))
        who = who or f"the device{f' (seen at {called})' if called else ''}"
        helped = "a slower way then takes its place" if found and self.remember else _FIND_IT
        return DeviceError(
            "{who} failed ({told}): this process can no longer use the device. See with npu-smi info or "
            "nvidia-smi whether it is still there, then run the same command again: it goes on where it "
            "stopped; {helped}.",
            who=who,
            told=told,
            helped=helped,
        )

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
        self.remember = None
        for form in self._forms.values():
            form.aside.clear()
            form.used.clear()
        self._noted.clear()

    def _named(self, name: str) -> Form:
        if name not in self._forms:
            raise ParameterError(
                'the operation "{name}" is unknown. Use one of {names}.',
                name=name,
                names=", ".join(self.names()),
            )
        return self._forms[name]
