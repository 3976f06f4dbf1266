"""A whole run in miniature: real photographs cut as a vision tower cuts them, two nodes, every byte checked."""
