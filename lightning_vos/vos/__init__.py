"""What the semi-supervised methods share: the network contract, the tracker, the LightningModule base."""
