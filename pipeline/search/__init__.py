"""The search: which subnet is the most accurate one that keeps every limit."""
