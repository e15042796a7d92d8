"""What figures of the papers show of a network while it follows a video; `lightning_vos.io.plots` draws it."""
