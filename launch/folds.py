"""`python -m launch.folds`; the code is in `rlhf/cli/folds.py`."""

import sys

from rlhf.cli.folds import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
