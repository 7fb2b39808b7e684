"""What is measured on judges: effects of order, agreement with people, calibration, scores from comparisons."""
