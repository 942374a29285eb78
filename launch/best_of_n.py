"""`python -m launch.best_of_n`; the code is in `rlhf/cli/best_of_n.py`."""

import sys

from rlhf.cli.best_of_n import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
