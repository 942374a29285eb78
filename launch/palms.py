"""`python -m launch.palms`; the code is in `rlhf/cli/palms.py`."""

import sys

from rlhf.cli.palms import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
