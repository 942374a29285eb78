"""`python -m launch.local`; the code is in `rlhf/cli/local.py`."""

import sys

from rlhf.cli.local import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
