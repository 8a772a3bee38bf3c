"""Classify pictures: ``python predict.py images=DIR``; ``--help`` lists every option."""

from mergestream.cli.predict import main

if __name__ == "__main__":
    main()
