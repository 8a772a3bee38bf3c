"""Lightning callbacks of a training, one concern each."""
