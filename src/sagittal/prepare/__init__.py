"""Cases to arrays: fingerprint, plan, resampling, intensities, augmentation, splits, store."""
