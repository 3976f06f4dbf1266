"""The scheduler's queues and its requests; of the other rooms it imports client."""
