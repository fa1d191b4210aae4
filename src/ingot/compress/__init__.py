"""Change a model: methods, and the recipes that order them."""
