"""Methods that train a student."""
