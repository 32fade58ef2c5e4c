"""visionpipe: params.yaml in, a registered and served image classifier out."""

__version__ = "0.1.0"
