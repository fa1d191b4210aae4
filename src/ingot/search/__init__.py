"""Try many recipes and engines, keep the best that proves its claims."""
