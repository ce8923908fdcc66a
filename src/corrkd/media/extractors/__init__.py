"""What makes features of a clip: one class an extractor."""
