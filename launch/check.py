"""`python -m launch.check`; the code is in `rlhf/cli/memory/check.py`."""

import sys

from rlhf.cli.memory.check import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
