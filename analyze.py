"""What the task vectors of a run look like: ``python analyze.py analysis=pruning``; ``--help`` lists everything."""

import hydra
from omegaconf import DictConfig

from mergestream.cli import command


@hydra.main(version_base="1.3", config_path="configs", config_name="analyze")
def main(cfg: DictConfig) -> None:
    with command.job():
        from mergestream.analysis import analyze

        analyze(cfg)


if __name__ == "__main__":
    command.launch(main)
