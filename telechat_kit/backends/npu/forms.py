"""The operations of an NPU that have more than one way; see `backends.forms`."""

from telechat_kit.backends.forms import PLAIN, Forms, Way

__all__ = [
    "PLAIN",
    "Way",
    "forget",
    "form",
    "names",
    "note",
    "operations",
    "operators",
    "set_aside",
    "use_slower",
    "ways",
]

operations = Forms()
form, forget, names, note, operators = (
    operations.form,
    operations.forget,
    operations.names,
    operations.note,
    operations.operators,
)
set_aside, use_slower, ways = operations.set_aside, operations.use_slower, operations.ways
