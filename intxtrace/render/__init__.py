"""Results to terminal text, JSON and HTML: pure, no computation."""
