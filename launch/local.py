"""`python -m launch.local`; the code is in `rlhf/cli/local.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("local")
