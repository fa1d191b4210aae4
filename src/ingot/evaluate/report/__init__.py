"""One self-contained HTML page that shows what was tried, what changed and what was proved."""
