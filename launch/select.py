"""`python -m launch.select`; the code is in `rlhf/cli/select.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("select")
