"""Every result under the root as tables, figures and a page: ``python report.py [root=runs]``."""

import hydra
from omegaconf import DictConfig

from mergestream.cli import command


@hydra.main(version_base="1.3", config_path="configs", config_name="report")
def main(cfg: DictConfig) -> None:
    with command.job():
        from mergestream.reporting import report

        report(cfg)


if __name__ == "__main__":
    command.launch(main)
