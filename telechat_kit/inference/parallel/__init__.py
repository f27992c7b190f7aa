"""One model on several devices: a process for each, started by the first and following what it does.

`device: npu:0,npu:1` is all that a user says. The process that asked keeps its own part of the model and hands every
forward call on to the others, so that notebooks, `generate` and evaluation stay as they are.
"""

from telechat_kit.inference.parallel.team import Team, team_of

__all__ = ["Team", "team_of"]
