"""What starts a node, runs it and watches over it; imports no other room of pipeline."""
