"""Clicks on shown rankings: models of what users click, simulated sessions, and the file that a click log is."""

from rerank.clicks.log import Session, read_log, write_log
from rerank.clicks.models import (
    CASCADE,
    EXAMINATION,
    ClickModel,
    DependentClick,
    PositionBased,
    attraction,
)
from rerank.clicks.simulate import Shown, simulate

__all__ = [
    "CASCADE",
    "EXAMINATION",
    "ClickModel",
    "DependentClick",
    "PositionBased",
    "Session",
    "Shown",
    "attraction",
    "read_log",
    "simulate",
    "write_log",
]
