"""Measures: from predictions and truth to numbers with their intervals.

``intervals`` (how sure a number is), ``ranking`` (ROC and precision-recall), ``decision`` (confusion matrix),
``calibration`` (whether probabilities mean what they say). Every measure takes ``weights`` with leading axes, so that
a thousand bootstrap resamples are one call.
"""
