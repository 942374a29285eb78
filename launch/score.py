"""`python -m launch.score`; the code is in `rlhf/cli/score.py`."""

import sys

from rlhf.cli.score import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
