"""A user's own model as a search space; write ``from pipeline.own_model import ...``."""
