from rlhf.configs.sweeps.kwise_vs_pairs import get_sweep as get_sweep
