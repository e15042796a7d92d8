"""What networks cost: memory and time over the length of a video, and the parts of one frame."""
