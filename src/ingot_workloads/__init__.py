"""Research built with the product, by its public names only; the product never imports it."""
