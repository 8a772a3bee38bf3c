"""Training: a stream of tasks in, an encoder for each task on disk out."""

from mergestream.training.schedule import warmup_cosine as warmup_cosine
