"""Model ladders: predict a large model's task accuracy from small ones (Bhagia et al. 2024, arXiv 2412.04403).

table = RunTable.from_reference_config(Path("final.json"))
task = TaskRegistry.builtin()["hellaswag"]
prediction = TwoStep("recommended").fit(table, task).predict(n=6.9e9, d=3.9e12, level=0.9)
print(prediction.accuracy, prediction.lo, prediction.hi)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
