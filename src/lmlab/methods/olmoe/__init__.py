from lmlab.methods.olmoe.ablation import AblationConfig, run_ablation
