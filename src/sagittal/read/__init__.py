"""Sources to data sets: one file a layout, and the manifest."""
