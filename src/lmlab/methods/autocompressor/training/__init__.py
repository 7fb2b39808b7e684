"""Learning to compress: the step function, its gradients, the task of recall."""
