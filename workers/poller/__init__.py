"""The poller process, the only writer of status words; imports no other room of workers."""
