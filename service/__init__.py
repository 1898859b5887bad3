"""The HTTP service: a bundle in, `POST /segment` out. Of `model` only what needs no torch."""
