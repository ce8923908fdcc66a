"""corrkd.experiment."""
