"""predict.py: which pictures are meant, what they show, and how that is told."""
