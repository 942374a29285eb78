"""`python -m launch.pool`; the code is in `rlhf/cli/pool.py`."""

import sys

from rlhf.cli.pool import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
