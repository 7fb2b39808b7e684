"""The harness of EleutherAI, on the models of lmlab."""
