"""Missing modalities and frames: masks, their distribution in training, and test conditions."""
