"""Metrics, calibration, statistical tests and explanations of trained networks."""
