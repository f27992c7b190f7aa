"""Runs against each other: what each one measured, in which conditions they differ, and what changed."""
