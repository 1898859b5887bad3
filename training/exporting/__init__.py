"""What an export makes of a network, one kind of artifact a file; `training.export` joins them."""
