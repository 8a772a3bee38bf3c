"""From the metrics.json under a root to tables, figures and a page: `run.report`."""

from mergestream.reporting.run import report

__all__ = ["report"]
