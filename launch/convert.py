"""`python -m launch.convert`; the code is in `rlhf/cli/convert.py`."""

import sys

from rlhf.cli.convert import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
