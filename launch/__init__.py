"""In a checkout `python -m launch.COMMAND` is `rlhf COMMAND`: `rlhf/cli/main.py` names the modules."""
