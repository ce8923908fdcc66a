"""Reports: tables, figures and the page of a run, from its folder alone."""

from corrkd.report.report import plain_report, write_report

__all__ = ["plain_report", "write_report"]
