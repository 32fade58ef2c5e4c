"""The commands of `visionpipe` that are no stage."""
