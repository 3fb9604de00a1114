"""From a model and cases with a known truth to evidence: rows, measures, subgroups, curves, comparisons."""
