"""Files to cases: one module a format, one a layout."""
