"""Language models behind an endpoint: texts, streamed as they are written."""
