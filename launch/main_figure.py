"""`python -m launch.main_figure`; the code is in `rlhf/cli/main_figure.py`."""

import sys

from rlhf.cli.main_figure import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
