"""corrkd.evaluation."""
