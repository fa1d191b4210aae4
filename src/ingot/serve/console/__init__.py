"""The console: web pages that show how a server is doing, each with a JSON twin."""
