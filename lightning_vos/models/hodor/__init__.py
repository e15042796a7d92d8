"""HODOR: high-level object descriptors for object re-segmentation, with soft-masked attention (Athar et al., 2022)."""
