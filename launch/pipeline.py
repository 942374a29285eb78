"""`python -m launch.pipeline`; the code is in `rlhf/cli/pipeline.py`."""

import sys

from rlhf.cli.pipeline import command

if __name__ == "__main__":
  sys.exit(command(sys.argv))
