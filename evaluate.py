"""Measure what was kept: ``python evaluate.py on=[cifar10,dtd]``; ``--help`` lists every option."""

from mergestream.cli.evaluate import main

if __name__ == "__main__":
    main()
