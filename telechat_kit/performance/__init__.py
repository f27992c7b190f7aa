"""Speed of float and W8A8: which cases are timed, the timed runs, and what they reach of the device's limit."""
