"""The reports of a run and of a comparison, from their folders alone: `write_...` for the page, `plain_...` for the terminal."""

from corrkd.report.comparison_page import plain_comparison, write_comparison
from corrkd.report.page import write_report
from corrkd.report.tables import plain_table

__all__ = ["plain_comparison", "plain_table", "write_comparison", "write_report"]
