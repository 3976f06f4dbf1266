"""embridge in inference engines, each of which is imported by its own module alone."""
