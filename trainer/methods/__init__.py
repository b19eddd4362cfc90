"""Training methods: what trains, and what is saved of it."""
