"""Worker processes: forked from a template, supervised, and sent again what one of them lost."""
