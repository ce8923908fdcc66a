"""Targets of prediction: each kind is a class with its loss, response, metrics and display."""
