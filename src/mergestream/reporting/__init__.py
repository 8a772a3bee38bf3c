"""Reports: from every metrics.json under a root to tables, statistics, figures and one HTML page."""

from mergestream.reporting.run import report

__all__ = ["report"]
