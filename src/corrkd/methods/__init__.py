"""corrkd.methods."""
