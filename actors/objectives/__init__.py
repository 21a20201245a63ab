"""Losses over rows of a table that the trainer minimizes: `lm` for pre-training and fine-tuning, `bradley_terry` for
the reward model, `dpo` and `kto`. Each is an `actors.model.microbatch.Objective`."""
