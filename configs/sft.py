from rlhf.configs.sft import get_config as get_config
