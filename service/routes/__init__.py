"""One file for each family of routes. Routes are thin: parse, await, answer; none holds a `try`."""
