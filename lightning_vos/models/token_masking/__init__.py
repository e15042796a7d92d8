"""Token masking: segmentation learnt from image labels, as attention of class tokens that are masked at random."""
