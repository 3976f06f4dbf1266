"""The bootstrap process: registrations, and grants on their way to encode nodes; it imports poller and transfer."""
