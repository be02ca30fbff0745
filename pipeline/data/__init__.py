"""Data sets, splits and batches. Import from the modules: this file stays free of torch."""
