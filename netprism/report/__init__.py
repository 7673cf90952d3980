"""Runs as pages: one self-contained HTML file for a run, or for several over one another."""

from netprism.report.comparison import write_comparison
from netprism.report.page import write_report
from netprism.report.run import Run, find_runs

__all__ = ["Run", "find_runs", "write_comparison", "write_report"]
