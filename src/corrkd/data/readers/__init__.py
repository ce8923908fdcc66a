"""corrkd.data.readers."""
