"""corrkd.report."""
