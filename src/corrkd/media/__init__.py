"""Extracting features from recordings: decoding, extractors, alignment, and the dataset file of a
folder of clips.
"""
