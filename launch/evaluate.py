"""`python -m launch.evaluate`; the code is in `rlhf/cli/evaluate.py`."""

import sys

from rlhf.cli.evaluate import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
