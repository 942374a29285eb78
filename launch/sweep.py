"""`python -m launch.sweep`; the code is in `rlhf/cli/sweep.py`."""

import sys

from rlhf.cli.sweep import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
