"""The nouns of pathology and their rules: numpy and the standard library only."""
