"""The version of corrkd."""

__version__ = "0.1.0"
