"""The report of a run, from its folder alone: `write_report` for the page, `plain_table` for the terminal."""

from corrkd.report.page import write_report
from corrkd.report.tables import plain_table

__all__ = ["plain_table", "write_report"]
