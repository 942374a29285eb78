from rlhf.configs.truth_judge import get_config as get_config
