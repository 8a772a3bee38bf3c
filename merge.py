"""Merge a run: ``python merge.py strategy=magmax lambda=0.5``; ``--help`` lists everything."""

import hydra
from omegaconf import DictConfig

from mergestream.cli import command


@hydra.main(version_base="1.3", config_path="configs", config_name="merge")
def main(cfg: DictConfig) -> None:
    with command.job():
        from mergestream.merging import merge

        merge(cfg)


if __name__ == "__main__":
    command.launch(main)
