"""What training and the service share: the network, and the geometry, words and files around it."""
