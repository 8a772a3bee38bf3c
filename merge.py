"""Merge a run: ``python merge.py strategy=magmax lambda=0.5``; ``--help`` lists every option."""

from mergestream.cli.merge import main

if __name__ == "__main__":
    main()
