"""``trtforge report``: what was checked, inspected, measured and profiled, on one HTML page that needs nothing else."""

from trtforge.harness.report.session import Checks, Session, gather, report

__all__ = ["Checks", "Session", "gather", "report"]
