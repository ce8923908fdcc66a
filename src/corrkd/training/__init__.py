"""Training of a method's student."""
