from rlhf.configs.sweeps.value_init import get_sweep as get_sweep
