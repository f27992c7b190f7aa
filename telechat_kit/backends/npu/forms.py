"""The operations of an NPU that have more than one way, and how its modules add to them."""

from telechat_kit.backends.forms import PLAIN, Forms, Way

__all__ = ["PLAIN", "Way", "form", "note", "operations"]

operations = Forms()
form, note = operations.form, operations.note
