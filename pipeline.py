"""Train, merge and report: ``python pipeline.py +experiment=smoke``; ``--help`` lists every option."""

from mergestream.cli.pipeline import main

if __name__ == "__main__":
    main()
