"""``hilnas generate``: networks for any limit from a trained run, without a search."""
