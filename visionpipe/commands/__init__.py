"""The commands of `visionpipe` that are not stages."""
