"""Running a loaded model: where it fits, how a sequence goes through it, one device or several."""
