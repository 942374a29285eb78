from rlhf.configs.sweeps.kl_coef_pretrained_ref import get_sweep as get_sweep
