"""K-shot NAS: subnets whose weights are mixed from K supernets."""
