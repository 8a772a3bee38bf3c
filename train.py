"""Train a stream: ``python train.py dataset=digits tasks=5 method=seq``; ``--help`` lists everything."""

import hydra
from omegaconf import DictConfig

from mergestream.cli import command


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    with command.job():
        from mergestream.training import train

        train(cfg)


if __name__ == "__main__":
    command.launch(main)
