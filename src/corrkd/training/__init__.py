"""corrkd.training."""
