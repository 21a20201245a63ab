"""Losses over rows of a table that the trainer minimizes: `lm` for pre-training and fine-tuning, `bradley_terry` for
the reward model, `dpo` and `kto`. Each is an `actors.model.microbatch.Objective`. `reference` computes log-ratios to
the reference model, and `answers` has the rows and the loss that `dpo` and `kto` share."""
