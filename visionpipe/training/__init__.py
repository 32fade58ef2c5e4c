"""Training: recipe, plan, optimizer and schedule, loss, checkpoints."""
