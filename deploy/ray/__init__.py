"""The service on Ray Serve: every replica is the whole service, with an engine of its own.

It is imported as `deploy.ray` from the root of the checkout; `ray` alone is Ray's own package.
"""
