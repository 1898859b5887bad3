"""What runs the service elsewhere than on a developer's machine, and what watches it there."""
