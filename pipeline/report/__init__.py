"""What a run found, as one HTML file and as tables on the terminal."""
