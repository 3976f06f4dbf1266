"""The bootstrap process: registrations, and grants on their way to encode nodes; of the other rooms it imports poller."""
