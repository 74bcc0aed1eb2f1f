"""`python -m mudreamer_fast` is the command `mudreamer-fast`."""

import sys

from mudreamer_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
