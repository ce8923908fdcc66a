"""corrkd.losses."""
