"""Runs of the notebooks: profiles checked before anything starts, steps executed, state kept, unchanged steps reused."""

from telechat_kit.runs.execution import run_profile
from telechat_kit.runs.profile import Profile, load_profile

__all__ = ["Profile", "load_profile", "run_profile"]
