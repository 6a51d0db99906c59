"""What this machine can do, what is wrong with it and what to do about it.

`examine` asks probes (`host`, `devices`, `network`) in a process of their own (`child`, `serve`, `partner`); `findings`
judges what they found; `privacy` keeps it fit to be shown; `known` keeps measured speeds for later.
"""

from .examine import examine
from .known import KeptSpeed, known_speeds, save_speeds
from .report import Device, Finding, Report

__all__ = ["Device", "Finding", "KeptSpeed", "Report", "examine", "known_speeds", "save_speeds"]
