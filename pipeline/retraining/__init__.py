"""Training one network alone after the search. Import from the modules: this one has no torch."""
