"""The trainer: optimizer and schedule, callbacks, checkpoints."""
