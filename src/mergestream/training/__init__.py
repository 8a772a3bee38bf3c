"""Training: the schedule, the Lightning module of one task, and the run over all tasks."""

from mergestream.training.learner import Learner as Learner
from mergestream.training.run import train as train
from mergestream.training.schedule import warmup_cosine as warmup_cosine
