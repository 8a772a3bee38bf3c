"""Fetch data and weights: ``python fetch.py +experiment=table1``; ``--help`` lists every option."""

from mergestream.cli.fetch import main

if __name__ == "__main__":
    main()
