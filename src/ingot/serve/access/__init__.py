"""Who may ask: API keys, tokens of an identity provider, and what each of them is allowed."""
