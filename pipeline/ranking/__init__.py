"""How well the scores of a supernet keep the order of what networks achieve when trained alone."""
