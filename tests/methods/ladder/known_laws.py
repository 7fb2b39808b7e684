"""The laws of synthetic ladders."""

from __future__ import annotations

import numpy as np

LAW = (3.64, 4.61, 0.226, 0.236, 0.454)  # log A, log B, alpha, beta, E
CURVE = (-0.75, 0.8, 8.0, 1.0)  # a, x0, k, b
SIZES = (190_354_176.0, 371_262_464.0, 758_220_288.0, 1_279_395_840.0)
MULTIPLES = (1.0, 2.0, 5.0, 10.0)


def true_loss(n, d):
    return np.exp(LAW[0] - LAW[2] * np.log(n)) + np.exp(LAW[1] - LAW[3] * np.log(d)) + LAW[4]


def true_accuracy(loss):
    return CURVE[0] / (1 + np.exp(-CURVE[2] * (loss - CURVE[1]))) + CURVE[3]
