"""The DICOM node: associations, what comes over them, and the storage commitment that is asked of us."""
