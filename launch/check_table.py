"""`python -m launch.check_table`; the code is in `rlhf/cli/memory/check_table.py`."""

import sys

from rlhf.cli.memory.check_table import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
