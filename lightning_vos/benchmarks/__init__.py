"""What methods cost: over videos and images, in the parts of a frame, in training; attention, loading, scoring."""
