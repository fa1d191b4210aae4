"""The asynchronous half of serving: durable jobs, instances that scale to zero, and their doors."""
