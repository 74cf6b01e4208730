"""`python -m mamba_tui` is the command `mamba-tui`."""

import sys

from mamba_tui.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
