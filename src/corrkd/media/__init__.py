"""From recordings to features: decoding, extractors, alignment, and a folder of clips as one
dataset file.
"""
