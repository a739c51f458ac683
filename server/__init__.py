"""The coordinator's side: round loop, run directory, Flower ServerApp and the engines that simulate sites."""
