"""`python -m launch.check_table`; the code is in `rlhf/cli/memory/check_table.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("check_table")
