"""TAFormer: spatio-temporal attention for video instance segmentation, and SeqFormer, which it is built on."""
