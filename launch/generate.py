"""`python -m launch.generate`; the code is in `rlhf/cli/generate.py`."""

import sys

from rlhf.cli.generate import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
