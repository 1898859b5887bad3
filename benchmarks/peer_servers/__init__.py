"""The same model behind other servers, each written the way that server's documents show."""
