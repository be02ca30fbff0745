"""What is done with a trained supernet. Import from the modules: this file stays free of torch."""
