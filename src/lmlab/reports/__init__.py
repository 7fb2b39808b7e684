"""HTML reports with one look: a page is sections of blocks, written as one file that needs no network.

A page with one figure:

    chart = line_chart([Series("train", steps, losses)], "step", "loss (nats per token)")
    page = Page("Pretraining run", sections=[Section("Loss", [Figure(chart, "Training loss.")])])
    page.write(Path("report.html"))
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
