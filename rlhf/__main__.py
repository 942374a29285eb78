"""`python -m rlhf COMMAND ...`, also where the `rlhf` command is not on the PATH."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run()
