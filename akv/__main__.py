"""Run akv from the command line: ``python -m akv``."""

import sys

from akv.cli import main

if __name__ == "__main__":
    sys.exit(main())
