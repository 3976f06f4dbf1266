"""An encoder's or a scheduler's place in a node, and its requests; imports no other room of pipeline."""
