"""corrkd.data."""
