"""Feature extractors, one class each."""
