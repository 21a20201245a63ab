"""Plain PyTorch: models, objectives, optimizers. No Ray here."""
