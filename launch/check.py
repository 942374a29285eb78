"""`python -m launch.check`; the code is in `rlhf/cli/memory/check.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("check")
