"""corrkd."""
