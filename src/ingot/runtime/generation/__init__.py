"""Generate text: a step of a decoder, a token of its scores, many requests at once."""
