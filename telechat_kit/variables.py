"""Variables of the environment that hold for a while, for this process and those that it starts meanwhile."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def set_meanwhile(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables as long as the context lasts; afterwards each has what it had before, or is gone."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
