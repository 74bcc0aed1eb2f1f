"""What the model's operations take and give, and the maths that all implementations share."""
