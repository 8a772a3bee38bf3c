"""Train a stream: ``python train.py dataset=digits tasks=5 method=seq``; ``--help`` lists every option."""

from mergestream.cli.train import main

if __name__ == "__main__":
    main()
