"""Draw a figure of a run: ``python analyze.py analysis=sign_conflicts``; ``--help`` lists every option."""

from mergestream.cli.analyze import main

if __name__ == "__main__":
    main()
