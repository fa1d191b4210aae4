"""What endpoints really did."""
