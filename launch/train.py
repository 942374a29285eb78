"""`python -m launch.train`; the code is in `rlhf/cli/train.py`."""

import sys

from rlhf.cli.train import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
