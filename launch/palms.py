"""`python -m launch.palms`; the code is in `rlhf/cli/palms.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("palms")
