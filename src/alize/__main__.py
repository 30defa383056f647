"""`python -m alize`, for machines where the script is not on the path."""

import sys

from alize.cli import main

if __name__ == "__main__":
    sys.exit(main())
