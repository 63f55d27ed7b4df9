"""What a mesh says of itself: metrics, status, explanations."""
