"""corrkd.missing."""
