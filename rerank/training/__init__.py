"""Training: where the lists come from, what is asked of them, and the recipes that put it together."""
