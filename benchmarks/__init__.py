"""What measures the numbers that the documents quote. Each program says how to run it."""
