"""`python -m launch.select`; the code is in `rlhf/cli/select.py`."""

import sys

from rlhf.cli.select import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
