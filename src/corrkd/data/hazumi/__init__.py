"""The Hazumi set, made from the public repositories of its authors (docs/data.md)."""
