"""Supernet training. Import from the modules: this file stays free of torch."""
