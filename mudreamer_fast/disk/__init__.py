"""What is kept on disk, written so that a crash leaves it whole."""
