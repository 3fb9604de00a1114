"""Measures: from predictions and truth to numbers with their intervals.

``intervals`` (how sure a number is), ``ranking`` (ROC and precision-recall), ``decision`` (confusion matrix),
``calibration`` (whether probabilities mean what they say). Of masks: ``overlap``, ``surface`` (with ``surfels`` and
``masks``) and ``lesions``; of boxes: ``boxes``, ``detection`` (average precision) and ``froc``; ``cases`` sums up what
many cases say. Where cases are weighed, ``weights`` has leading axes, so that a thousand bootstrap resamples are one call.
"""
