"""report: what several runs give together, in figures that a reader can trust: see `command.report`."""

from setrec.report.command import report

__all__ = ["report"]
