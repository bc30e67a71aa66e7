"""One module for each layout in which text data sets are published."""
