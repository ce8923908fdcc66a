"""Experiments: settings, plans, and running them in a folder."""
