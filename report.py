"""Report every result: ``python report.py``; ``--help`` lists every option."""

from mergestream.cli.report import main

if __name__ == "__main__":
    main()
