"""The files of one image, or of its outlines, to an Image or a Segmentation: one file a format."""
