"""corrkd.networks."""
