"""A schedule for every kernel that is not hand-written: what Relax's own legalization and fusion leave behind."""

from .schedule import ScheduleRest

__all__ = ["ScheduleRest"]
